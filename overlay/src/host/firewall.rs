//! Firewalls of others that drop what they do not know: an accepting rule in a table of ours does not overrule them.
//!
//! Where iptables' `FORWARD` chain drops by default (Docker and ufw set it so), two rules at its end accept what goes to and
//! comes from our devices: nobody's rule is overruled, only the default. Any other chain is its owner's: it is told what to
//! do. The rules go when this instance goes.

use std::path::Path;
use std::process::{Command, Stdio};

use skep_netlink::nft::{Family, FoundChain, Hook, Nft, Rule, Table, Transaction, Verdict};
use skep_netlink::{Namespace, NetlinkError};

use crate::plan::out;

/// Of iptables-nft, for either family.
fn iptables_table(ipv6: bool) -> Table {
    Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, "filter")
}

/// What marks rules of an instance.
fn comment(instance: &str) -> String {
    format!("skep-{instance}")
}

fn is_iptables(chain: &FoundChain) -> bool {
    chain.name == "FORWARD" && chain.table.name == "filter" && chain.table.family != Family::Inet
}

fn forwarding(chain: &FoundChain) -> bool {
    chain.hook == Hook::Forward as u32
}

/// Puts the rules where they are missing. `families`: IPv4, IPv6.
pub(super) fn ensure(host: &Namespace, nft: &Nft, instance: &str, families: [bool; 2]) -> Result<(), NetlinkError> {
    let chains = nft.base_chains()?;
    for (ipv6, wanted) in [(false, families[0]), (true, families[1])] {
        let table = iptables_table(ipv6);
        let dropping = |chain: &FoundChain| is_iptables(chain) && chain.table == table && chain.drop;
        if !wanted || !chains.iter().any(dropping) {
            continue;
        }
        let comment = comment(instance);
        if nft.rule_comments(&table, "FORWARD")?.iter().any(|(_, found)| *found == comment) {
            continue;
        }
        let mut transaction = Transaction::new();
        let rule = || Rule::new(table.family);
        for rule in [rule().input_device_prefix(out::DEVICES), rule().output_device_prefix(out::DEVICES)] {
            let rule = rule.counter().verdict(Verdict::Accept).comment(&comment);
            transaction.add_rule(&table, "FORWARD", &rule);
        }
        nft.commit(&transaction)?;
    }
    Legacy::all(host, families).iter().for_each(|legacy| legacy.ensure(instance));
    Ok(())
}

/// Takes the rules of an instance away.
pub(super) fn remove(host: &Namespace, nft: &Nft, instance: &str) -> Result<(), NetlinkError> {
    for chain in nft.base_chains()?.iter().filter(|chain| is_iptables(chain)) {
        let mut transaction = Transaction::new();
        for (handle, found) in nft.rule_comments(&chain.table, &chain.name)? {
            if found == comment(instance) {
                transaction.delete_rule(&chain.table, &chain.name, handle);
            }
        }
        nft.commit(&transaction)?;
    }
    Legacy::all(host, [true; 2]).iter().for_each(|legacy| legacy.remove(instance));
    Ok(())
}

/// What its owner has to do, for a person.
pub(super) fn notes(nft: &Nft, instance: &str) -> Result<Vec<String>, NetlinkError> {
    let chains = nft.base_chains()?;
    let has_ours = |chain: &FoundChain| {
        let rules = nft.rule_comments(&chain.table, &chain.name).unwrap_or_default();
        is_iptables(chain) && rules.iter().any(|(_, found)| *found == comment(instance))
    };
    let others = chains.iter().filter(|chain| forwarding(chain) && chain.drop && !has_ours(chain));
    // Where no network has IPv6, nothing of ours is to pass there.
    let others = others.filter(|chain| !is_iptables(chain) || chain.table.family == Family::Ip);
    let mut notes: Vec<String> = others
        .map(|chain| {
            let (table, name, devices) = (&chain.table, &chain.name, out::DEVICES);
            format!(
                "chain {name} of nftables' table {table} drops forwarded packets by default, which skep leaves as it is: \
                 let pass what it needs by `nft add rule {table} {name} iifname \"{devices}*\" accept` and `nft add rule \
                 {table} {name} oifname \"{devices}*\" accept`, in the file that the table is made from too"
            )
        })
        .collect();
    if chains.iter().any(|chain| chain.table.name == "firewalld") {
        notes.push(format!(
            "firewalld runs: where it rejects packets of skep's networks, let them pass by `firewall-cmd --permanent \
             --zone=trusted --add-interface={}+` and `firewall-cmd --reload`",
            out::DEVICES
        ));
    }
    Ok(notes)
}

/// The older iptables, which nftables does not show. It is asked only where the kernel has such a table in this namespace:
/// asking makes one otherwise.
struct Legacy {
    program: &'static str,
    host: Namespace,
}

impl Legacy {
    fn all(host: &Namespace, families: [bool; 2]) -> Vec<Self> {
        let known = [("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")];
        let has = |names: &str| {
            let read = |_: &skep_netlink::Inside| {
                let path = Path::new("/proc/thread-self/net").join(names);
                Ok::<_, NetlinkError>(std::fs::read_to_string(path).unwrap_or_default())
            };
            host.enter(read).is_ok_and(|text| text.lines().any(|line| line == "filter"))
        };
        let found = known.into_iter().zip(families).filter(|((_, names), wanted)| *wanted && has(names));
        found.filter_map(|((program, _), _)| Some(Self { program, host: host.try_clone().ok()? })).collect()
    }

    /// What it prints; `None`: it is not there, or refused.
    fn run(&self, arguments: &[&str]) -> Option<String> {
        let run = |_: &skep_netlink::Inside| {
            let mut command = Command::new(self.program);
            command.arg("-w").args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
            Ok::<_, NetlinkError>(command.output().ok())
        };
        let output = self.host.enter(run).ok()??;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn ensure(&self, instance: &str) {
        let Some(listed) = self.run(&["-S", "FORWARD"]) else {
            tracing::warn!(
                "the kernel has a filter table of {}, which cannot be read: where its FORWARD chain drops, let pass what \
                 comes from and goes to devices {}+",
                self.program,
                out::DEVICES
            );
            return;
        };
        if !listed.lines().any(|line| line == "-P FORWARD DROP") || listed.contains(&comment(instance)) {
            return;
        }
        for direction in ["-i", "-o"] {
            if self.run(&rule("-A", direction, &comment(instance), &devices())).is_none() {
                tracing::warn!("{} takes no rule in FORWARD", self.program);
            }
        }
    }

    fn remove(&self, instance: &str) {
        if self.run(&["-S", "FORWARD"]).is_some_and(|listed| listed.contains(&comment(instance))) {
            for direction in ["-i", "-o"] {
                let _ = self.run(&rule("-D", direction, &comment(instance), &devices()));
            }
        }
    }
}

fn devices() -> String {
    format!("{}+", out::DEVICES)
}

fn rule<'a>(action: &'a str, direction: &'a str, comment: &'a str, devices: &'a str) -> [&'a str; 10] {
    [action, "FORWARD", direction, devices, "-m", "comment", "--comment", comment, "-j", "ACCEPT"]
}
