//! nftables: skep's own tables as they were meant, and others' that drop what a host forwards.

use std::collections::BTreeMap;

use skep_netlink::nft::Hook;
use skep_netlink::nft::content::{Content, Difference, TableContent};
use skep_proto::v1::{CheckArea, NetworkFinding};

use super::{error, names, warning};

/// How our own tables differ from what they were meant to be. `place` says where, such as "this host".
pub fn own(place: &str, meant: &BTreeMap<String, TableContent>, there: &Content, advice: &str) -> Vec<NetworkFinding> {
    let mut found = Vec::new();
    for (name, table) in meant {
        let differences: Vec<String> =
            table.differences(there.tables.get(name)).iter().map(Difference::to_string).collect();
        if !differences.is_empty() {
            let problem = format!("table {name} of {place} {}", names(differences.iter().map(String::as_str)));
            found.push(error(CheckArea::Rules, problem, advice));
        }
    }
    found
}

/// Tables of ours that were not meant to be there.
pub fn stray(
    place: &str,
    ours: impl Fn(&str) -> bool,
    meant: &BTreeMap<String, TableContent>,
    there: &Content,
) -> Vec<NetworkFinding> {
    let is_stray =
        |name: &&String| !meant.contains_key(*name) && name.split_once(' ').is_some_and(|(_, name)| ours(name));
    let say = |name: &String| {
        let problem = format!("{place} has a table {name} that nothing needs any more");
        let advice = format!("if no other skep runs there, delete it (`nft delete table {name}`)");
        warning(CheckArea::Rules, problem, advice)
    };
    there.tables.keys().filter(is_stray).map(say).collect()
}

/// Whether others' chains drop what this host forwards for networks with a way out, and no rule beside lets it pass. The
/// first word of all of them counts for nothing: a packet has to pass every chain.
pub fn forwarding(there: &Content) -> Vec<NetworkFinding> {
    let out = crate::plan::out::DEVICES.as_bytes();
    let mut found = Vec::new();
    for (name, table) in &there.tables {
        let drops = table.chains.iter().filter(|(_, chain)| chain.hook == Some(Hook::Forward as u32) && chain.drop);
        let lets_ours_pass = || {
            let mut rules = table.chains.values().flat_map(|chain| chain.rules.iter().flatten());
            rules.any(|rule| rule.text.windows(out.len()).any(|window| window == out))
        };
        for (chain, _) in drops {
            if lets_ours_pass() {
                continue;
            }
            let problem = format!(
                "chain {chain} of nftables table {name} drops what this host forwards: tasks do not get out, and published \
                 ports do not lead in"
            );
            let rule = |device: &str| format!("`nft insert rule {name} {chain} {device} \"sk-*\" accept`");
            let advice = format!(
                "let skep's devices pass: {} and {}, and again after whatever makes that table",
                rule("iifname"),
                rule("oifname")
            );
            found.push(error(CheckArea::Rules, problem, advice));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use skep_netlink::nft::{BaseChain, ChainType, Family, Rule, Table, Transaction, Verdict};

    use super::*;

    fn drops(change: impl FnOnce(&Table, &mut Transaction)) -> Content {
        let table = Table::new(Family::Ip, "filter");
        let mut transaction = Transaction::new();
        transaction.add_table(&table);
        let chain = BaseChain { drop: true, ..BaseChain::new(ChainType::Filter, Hook::Forward, 0) };
        transaction.add_base_chain(&table, "FORWARD", chain);
        change(&table, &mut transaction);
        Content::of(&transaction)
    }

    #[test]
    fn others_that_drop_are_told_with_what_helps() {
        let found = forwarding(&drops(|_, _| {}));
        assert_eq!(found.len(), 1);
        assert!(found[0].advice.contains("`nft insert rule ip filter FORWARD iifname \"sk-*\" accept`"), "{found:?}");
        // Somebody did that, or nothing drops.
        let pass = |table: &Table, transaction: &mut Transaction| {
            transaction.add_chain(table, "USER");
            let rule = Rule::new(Family::Ip).input_device("sk-abc").verdict(Verdict::Accept);
            transaction.add_rule(table, "USER", &rule);
        };
        assert!(forwarding(&drops(pass)).is_empty());
        let input = BaseChain { drop: true, ..BaseChain::new(ChainType::Filter, Hook::Input, 0) };
        let mut transaction = Transaction::new();
        let table = Table::new(Family::Inet, "mine");
        transaction.add_table(&table);
        transaction.add_base_chain(&table, "input", input);
        transaction.add_base_chain(&table, "forward", BaseChain::new(ChainType::Filter, Hook::Forward, 0));
        assert!(forwarding(&Content::of(&transaction)).is_empty());
    }

    #[test]
    fn tables_are_compared() {
        let content = drops(|_, _| {});
        assert!(own("this host", &content.tables, &content, "do it").is_empty());
        let found = own("this host", &content.tables, &Content::default(), "do it");
        assert_eq!(found[0].problem, "table ip filter of this host is not there");
        assert_eq!(found[0].advice, "do it");
        let none = BTreeMap::new();
        let stray = stray("this host", |name| name == "filter", &none, &content);
        assert!(stray[0].advice.contains("`nft delete table ip filter`"));
    }
}
