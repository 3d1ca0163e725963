//! What tables hold: read from the kernel, or worked out from the transactions that were committed. Both are read from the
//! same messages, so that the two can be compared: what somebody else removed or added shows.
//!
//! Used by whoever looks for faults. Rules are compared by the kinds of their expressions, elements by keys and values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Family, Nft, Table, Transaction, kind};
use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Attribute, Attributes, Batch, Malformed, Message, Messages};

/// Prefix of sets that the kernel names itself.
const ANONYMOUS: &str = "__";

/// Tables with what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// By family and name, as [`Table`] writes itself.
    pub tables: BTreeMap<String, TableContent>,
}

/// What a table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableContent {
    /// By name.
    pub chains: BTreeMap<String, ChainContent>,
    /// Sets and maps, by name.
    pub sets: BTreeMap<String, BTreeSet<ElementContent>>,
}

/// What a chain is and holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainContent {
    /// Number of the hook ([`super::Hook`]) that calls it; `None`: only rules lead to it.
    pub hook: Option<u32>,
    /// Whether what no rule decides on is dropped.
    pub drop: bool,
    /// Its rules, in order. `None`: not known, as some were changed by their handles.
    pub rules: Option<Vec<RuleContent>>,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleContent {
    /// The kinds of its expressions, such as `payload cmp nat`.
    pub expressions: String,
    /// Names of devices that it compares with, as they stand in it.
    pub text: Vec<u8>,
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementContent {
    /// Its key as the kernel has it.
    pub key: Vec<u8>,
    /// What it maps to; empty for verdicts and in sets.
    pub value: Vec<u8>,
}

/// How a table differs from what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    NoTable,
    /// A chain is not there.
    NoChain(String),
    /// A chain that nobody asked for.
    StrayChain(String),
    /// A chain has other rules: so many there, so many meant.
    Rules(String, usize, usize),
    /// A set is not there.
    NoSet(String),
    /// So many elements of a set are missing, and so many are there that should not.
    Elements(String, usize, usize),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("is not there"),
            Self::NoChain(name) => write!(f, "lacks chain {name}"),
            Self::StrayChain(name) => write!(f, "has a chain {name} that skep did not make"),
            Self::Rules(name, there, meant) if there == meant => write!(f, "has other rules in chain {name}"),
            Self::Rules(name, there, meant) => write!(f, "has {there} rules in chain {name} instead of {meant}"),
            Self::NoSet(name) => write!(f, "lacks set {name}"),
            Self::Elements(name, missing, 0) => write!(f, "lacks {missing} elements of {name}"),
            Self::Elements(name, 0, stray) => write!(f, "has {stray} stale elements in {name}"),
            Self::Elements(name, missing, stray) => {
                write!(f, "lacks {missing} elements of {name} and has {stray} stale ones")
            }
        }
    }
}

impl TableContent {
    /// How what is `there` differs from this, which it should be.
    pub fn differences(&self, there: Option<&Self>) -> Vec<Difference> {
        let Some(there) = there else { return vec![Difference::NoTable] };
        let mut found = Vec::new();
        for (name, meant) in &self.chains {
            let Some(chain) = there.chains.get(name) else {
                found.push(Difference::NoChain(name.clone()));
                continue;
            };
            if let (Some(meant), Some(rules)) = (&meant.rules, &chain.rules)
                && !meant.iter().map(|rule| &rule.expressions).eq(rules.iter().map(|rule| &rule.expressions))
            {
                found.push(Difference::Rules(name.clone(), rules.len(), meant.len()));
            }
        }
        let stray = there.chains.keys().filter(|name| !self.chains.contains_key(*name));
        found.extend(stray.map(|name| Difference::StrayChain(name.clone())));
        for (name, meant) in &self.sets {
            let Some(elements) = there.sets.get(name) else {
                found.push(Difference::NoSet(name.clone()));
                continue;
            };
            let (missing, stray) = (meant.difference(elements).count(), elements.difference(meant).count());
            if missing + stray > 0 {
                found.push(Difference::Elements(name.clone(), missing, stray));
            }
        }
        found
    }
}

impl Content {
    /// What a namespace without any of its tables has after a transaction.
    pub fn of(transaction: &Transaction) -> Self {
        let mut content = Self::default();
        content.follow(transaction);
        content
    }

    /// Follows a transaction that was committed. What it changes in a table that is not known stays unknown.
    pub fn follow(&mut self, transaction: &Transaction) {
        let Ok(batch) = transaction.batch() else { return };
        for message in Messages(batch.bytes()) {
            // Written by ourselves: what cannot be read is not there.
            let Ok(()) = message.and_then(|message| self.take(message)) else { continue };
        }
    }

    fn table(&mut self, family: u8, name: &str) -> Option<&mut TableContent> {
        self.tables.get_mut(&table_name(family, name)?)
    }

    /// Takes a message that says that something is there or is to be, or is to go.
    pub(crate) fn take(&mut self, message: Message<'_>) -> Result<(), Malformed> {
        const SUBSYSTEM: u16 = NFNL_SUBSYS_NFTABLES << 8;
        if message.kind & 0xff00 != SUBSYSTEM {
            return Ok(());
        }
        let (fixed, attributes) = message.split(4)?;
        let family = fixed.first().copied().unwrap_or_default();
        match message.kind & 0xff {
            NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE => {
                let Some(name) = text(attributes, NFTA_TABLE_NAME)?.and_then(|name| table_name(family, &name)) else {
                    return Ok(());
                };
                match message.kind & 0xff == NFT_MSG_NEWTABLE {
                    true => drop(self.tables.entry(name).or_default()),
                    false => drop(self.tables.remove(&name)),
                }
            }
            NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => self.chain(message, family, attributes)?,
            NFT_MSG_NEWRULE | NFT_MSG_DELRULE => self.rule(message, family, attributes)?,
            NFT_MSG_NEWSET | NFT_MSG_DELSET => {
                let (table, name) = (text(attributes, NFTA_SET_TABLE)?, text(attributes, NFTA_SET_NAME)?);
                let (Some(table), Some(name)) = (table, name) else { return Ok(()) };
                if name.starts_with(ANONYMOUS) {
                    return Ok(());
                }
                let Some(table) = self.table(family, &table) else { return Ok(()) };
                match message.kind & 0xff == NFT_MSG_NEWSET {
                    true => drop(table.sets.entry(name).or_default()),
                    false => drop(table.sets.remove(&name)),
                }
            }
            NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => self.elements(message, family, attributes)?,
            _ => {}
        }
        Ok(())
    }

    fn chain(&mut self, message: Message<'_>, family: u8, attributes: Attributes<'_>) -> Result<(), Malformed> {
        let (table, name) = (text(attributes, NFTA_CHAIN_TABLE)?, text(attributes, NFTA_CHAIN_NAME)?);
        let (Some(table), Some(name)) = (table, name) else { return Ok(()) };
        let Some(table) = self.table(family, &table) else { return Ok(()) };
        if message.kind & 0xff == NFT_MSG_DELCHAIN {
            table.chains.remove(&name);
            return Ok(());
        }
        let chain = table.chains.entry(name).or_default();
        chain.rules.get_or_insert_default();
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                NFTA_CHAIN_HOOK => chain.hook = number(attribute.nested(), NFTA_HOOK_HOOKNUM)?,
                NFTA_CHAIN_POLICY => chain.drop = attribute.be32()? == 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn rule(&mut self, message: Message<'_>, family: u8, attributes: Attributes<'_>) -> Result<(), Malformed> {
        let (table, name) = (text(attributes, NFTA_RULE_TABLE)?, text(attributes, NFTA_RULE_CHAIN)?);
        let (Some(table), Some(name)) = (table, name) else { return Ok(()) };
        let Some(chain) = self.table(family, &table).and_then(|table| table.chains.get_mut(&name)) else {
            return Ok(());
        };
        let (mut by_handle, mut rule) = (false, RuleContent::default());
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                NFTA_RULE_HANDLE => by_handle = true,
                NFTA_RULE_EXPRESSIONS => rule = expressions(attribute)?,
                _ => {}
            }
        }
        // The kernel's own answers name the handle of every rule; a request only where it changes that one.
        let from_kernel = message.flags & REQUEST == 0;
        match message.kind & 0xff == NFT_MSG_NEWRULE {
            true if from_kernel || !by_handle => chain.rules.iter_mut().for_each(|rules| rules.push(rule.clone())),
            false if !by_handle => chain.rules = Some(Vec::new()),
            _ => chain.rules = None,
        }
        Ok(())
    }

    fn elements(&mut self, message: Message<'_>, family: u8, attributes: Attributes<'_>) -> Result<(), Malformed> {
        let (table, name) = (text(attributes, NFTA_SET_ELEM_LIST_TABLE)?, text(attributes, NFTA_SET_ELEM_LIST_SET)?);
        let (Some(table), Some(name)) = (table, name) else { return Ok(()) };
        let Some(set) = self.table(family, &table).and_then(|table| table.sets.get_mut(&name)) else { return Ok(()) };
        let put = message.kind & 0xff == NFT_MSG_NEWSETELEM;
        let mut listed = false;
        for attribute in attributes {
            let attribute = attribute?;
            if attribute.kind != NFTA_SET_ELEM_LIST_ELEMENTS {
                continue;
            }
            for element in attribute.nested() {
                listed = true;
                let element = element_of(element?.nested())?;
                match put {
                    true => drop(set.insert(element)),
                    false => set.retain(|held| held.key != element.key),
                }
            }
        }
        if !put && !listed {
            set.clear();
        }
        Ok(())
    }
}

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

fn table_name(family: u8, name: &str) -> Option<String> {
    let family = match family {
        1 => Family::Inet,
        2 => Family::Ip,
        10 => Family::Ip6,
        _ => return None,
    };
    Some(Table::new(family, name).to_string())
}

fn text(attributes: Attributes<'_>, wanted: u16) -> Result<Option<String>, Malformed> {
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == wanted {
            return attribute.string().map(Some);
        }
    }
    Ok(None)
}

fn number(attributes: Attributes<'_>, wanted: u16) -> Result<Option<u32>, Malformed> {
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == wanted {
            return attribute.be32().map(Some);
        }
    }
    Ok(None)
}

/// The kinds of expressions in a rule, and what they compare with.
fn expressions(list: Attribute<'_>) -> Result<RuleContent, Malformed> {
    let mut rule = RuleContent::default();
    for expression in list.nested() {
        let mut name = String::new();
        for attribute in expression?.nested() {
            let attribute = attribute?;
            match attribute.kind {
                NFTA_EXPR_NAME => name = attribute.string()?,
                NFTA_EXPR_DATA if name == "cmp" => {
                    for data in attribute.nested().flatten().filter(|data| data.kind == NFTA_CMP_DATA) {
                        rule.text.extend(data.nested().flatten().flat_map(|value| value.payload).copied());
                        rule.text.push(b'\n');
                    }
                }
                // iptables' own matches are only told by their names.
                _ => {}
            }
        }
        if !rule.expressions.is_empty() {
            rule.expressions.push(' ');
        }
        rule.expressions.push_str(&name);
    }
    Ok(rule)
}

fn element_of(attributes: Attributes<'_>) -> Result<ElementContent, Malformed> {
    let mut element = ElementContent::default();
    for attribute in attributes {
        let attribute = attribute?;
        let value = || attribute.nested().flatten().find(|data| data.kind == NFTA_DATA_VALUE);
        let bytes = || value().map(|data| data.payload.to_vec()).unwrap_or_default();
        match attribute.kind {
            NFTA_SET_ELEM_KEY => element.key = bytes(),
            NFTA_SET_ELEM_DATA => element.value = bytes(),
            _ => {}
        }
    }
    Ok(element)
}

impl Nft {
    /// All tables of the families that skep uses, with their chains and rules; with the elements of the sets of those
    /// whose name begins with `elements_of`.
    pub fn content(&self, elements_of: &str) -> Result<Content, NetlinkError> {
        let mut content = Content::default();
        for (message, what) in [
            (NFT_MSG_GETTABLE, "tables"),
            (NFT_MSG_GETCHAIN, "chains"),
            (NFT_MSG_GETRULE, "rules"),
            (NFT_MSG_GETSET, "sets"),
        ] {
            let mut request = Batch::new();
            request.message(kind(message), 0, |writer| writer.raw(&[0; 4]));
            let before = content.clone();
            content =
                self.fill(&request, &before).map_err(|error| error.into_error(format!("list nftables {what}")))?;
        }
        let mut sets = Vec::new();
        for (table, found) in &content.tables {
            let Some((family, name)) = table.split_once(' ') else { continue };
            if name.starts_with(elements_of) {
                sets.extend(found.sets.keys().map(|set| (family.to_owned(), name.to_owned(), set.clone())));
            }
        }
        for (family, table, set) in sets {
            let number = [Family::Ip, Family::Ip6, Family::Inet].into_iter().find(|each| each.name() == family);
            let number = number.map_or(0, Family::number);
            let mut request = Batch::new();
            request.message(kind(NFT_MSG_GETSETELEM), 0, |writer| {
                writer.raw(&[number, 0, 0, 0]);
                writer.string(NFTA_SET_ELEM_LIST_TABLE, &table);
                writer.string(NFTA_SET_ELEM_LIST_SET, &set);
            });
            let name = format!("{family} {table}");
            // Only this set goes through the dump, which may have to begin again.
            let empty = TableContent { chains: BTreeMap::new(), sets: [(set.clone(), BTreeSet::new())].into() };
            let before = Content { tables: [(name.clone(), empty)].into() };
            let mut filled = self
                .fill(&request, &before)
                .map_err(|error| error.into_error(format!("list the elements of {set} in table {name}")))?;
            let elements = filled.tables.remove(&name).and_then(|mut table| table.sets.remove(&set));
            if let (Some(table), Some(elements)) = (content.tables.get_mut(&name), elements) {
                table.sets.insert(set, elements);
            }
        }
        Ok(content)
    }

    /// What a dump adds to what is known.
    fn fill(&self, request: &Batch, before: &Content) -> Result<Content, crate::socket::SocketError> {
        let found = self.socket().dump(request, |found: &mut Option<Content>, message| {
            found.get_or_insert_with(|| before.clone()).take(message)
        })?;
        Ok(found.unwrap_or_else(|| before.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BaseChain, ChainType, Element, Hook, Rule, Selector, Set, Transport, Value, Verdict};
    use super::*;

    fn port(number: u16) -> Element {
        Element::new(Value::new().protocol(Transport::Tcp).port(number))
    }

    fn made() -> (Table, Content) {
        let table = Table::new(Family::Ip, "skep-test");
        let mut transaction = Transaction::new();
        transaction.reset_table(&table);
        let key = [Selector::Protocol, Selector::DestinationPort].map(Selector::field);
        transaction.add_set(&table, &Set::new("ports", &key));
        transaction.add_elements(&table, "ports", &[port(1), port(2)]);
        transaction.add_base_chain(&table, "in", BaseChain::new(ChainType::Filter, Hook::Forward, 0));
        let rule = Rule::new(Family::Ip).input_device("out0").verdict(Verdict::Drop);
        transaction.add_rule(&table, "in", &rule);
        transaction.add_rule(&table, "in", &rule);
        (table.clone(), Content::of(&transaction))
    }

    #[test]
    fn transactions_add_up() {
        let (table, mut content) = made();
        let of = |content: &Content| content.tables["ip skep-test"].clone();
        assert_eq!(of(&content).sets["ports"].len(), 2);
        assert_eq!(of(&content).chains["in"].rules.as_ref().map(Vec::len), Some(2));
        assert_eq!((of(&content).chains["in"].hook, of(&content).chains["in"].drop), (Some(2), false));
        let mut change = Transaction::new();
        change.delete_elements(&table, "ports", &[port(1)]);
        change.flush_chain(&table, "in");
        change.add_chain(&table, "other");
        change.add_rule(&Table::new(Family::Ip, "unknown"), "in", &Rule::new(Family::Ip).verdict(Verdict::Drop));
        content.follow(&change);
        assert_eq!(of(&content).sets["ports"].len(), 1);
        assert_eq!(of(&content).chains["in"].rules.as_ref().map(Vec::len), Some(0));
        assert_eq!(content.tables.len(), 1);
        let mut change = Transaction::new();
        change.flush_set(&table, "ports");
        change.delete_rule(&table, "in", 7);
        content.follow(&change);
        assert!(of(&content).sets["ports"].is_empty() && of(&content).chains["in"].rules.is_none());
        let mut change = Transaction::new();
        change.remove_table(&table);
        content.follow(&change);
        assert!(content.tables.is_empty());
    }

    #[test]
    fn differences_are_told() {
        let (_, content) = made();
        let meant = &content.tables["ip skep-test"];
        assert_eq!(meant.differences(Some(meant)), []);
        assert_eq!(meant.differences(None), [Difference::NoTable]);
        let mut there = meant.clone();
        if let Some(rules) = there.chains.get_mut("in").and_then(|chain| chain.rules.as_mut()) {
            rules.pop();
        }
        there.chains.insert("odd".to_owned(), ChainContent::default());
        if let Some(set) = there.sets.get_mut("ports") {
            set.pop_first();
            set.insert(ElementContent { key: vec![9], value: Vec::new() });
        }
        let found: Vec<String> = meant.differences(Some(&there)).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "has 1 rules in chain in instead of 2",
                "has a chain odd that skep did not make",
                "lacks 1 elements of ports and has 1 stale ones"
            ]
        );
        there.chains.clear();
        there.sets.clear();
        let gone = [Difference::NoChain("in".to_owned()), Difference::NoSet("ports".to_owned())];
        assert_eq!(meant.differences(Some(&there)), gone);
    }
}
