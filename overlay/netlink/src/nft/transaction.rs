//! Changes to nftables that take effect together or not at all.
//!
//! Changes are made in order, each on what the earlier ones made. `add_*` of what is there already changes nothing;
//! deleting what is not there fails the whole.

use super::expression::Verdict;
use super::rule::Rule;
use super::set::{Element, Set};
use super::{Table, kind};
use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Batch, Writer};

/// Elements in one message: an attribute holds 65,535 bytes, an element takes up to 150.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// Longest name of a table, chain or set (`NFT_NAME_MAXLEN` less the zero byte).
pub const NAME_MAX: usize = 255;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;

/// A list of changes.
#[derive(Debug, Default)]
pub struct Transaction {
    batch: Batch,
    actions: Vec<String>,
    sets: u32,
    invalid: Option<(String, String)>,
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainType {
    /// Accept and drop.
    Filter,
    /// Change addresses. Sees only the first packet of a connection.
    Nat,
    /// Accept and drop; when it changes a mark, the packet is routed again. Only at [`Hook::Output`].
    Route,
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting = 0,
    /// Packets for this host.
    Input = 1,
    /// Packets that pass through.
    Forward = 2,
    /// Packets of this host.
    Output = 3,
    /// Packets that go out.
    Postrouting = 4,
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// What it may do.
    pub kind: ChainType,
    /// Where it is called.
    pub hook: Hook,
    /// The smallest is called first. -100 changes destinations (`dstnat`), 0 filters, 100 changes sources (`srcnat`).
    pub priority: i32,
    /// Whether what no rule decides on is dropped rather than accepted.
    pub drop: bool,
}

impl BaseChain {
    /// A chain that accepts what no rule decides on.
    pub fn new(kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, drop: false }
    }
}

impl Transaction {
    /// No changes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.invalid.is_none()
    }

    /// How many messages it takes.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Adds a table. It stays when the handle is closed: rules must outlive the process that made them.
    pub fn add_table(&mut self, table: &Table) {
        self.table(table, 0);
    }

    /// Adds a table that belongs to the handle (`flags owner`): nobody else can change it, and it goes when the
    /// handle is closed, in every process that has it.
    pub fn add_owned_table(&mut self, table: &Table) {
        self.table(table, OWNER);
    }

    fn table(&mut self, table: &Table, flags: u32) {
        self.push("add", "table", &table.name, table, NFT_MSG_NEWTABLE, NLM_F_CREATE, |message| {
            message.string(NFTA_TABLE_NAME, &table.name);
            message.be32(NFTA_TABLE_FLAGS, flags);
        });
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: &Table) {
        self.push("delete", "table", &table.name, table, NFT_MSG_DELTABLE, 0, |message| {
            message.string(NFTA_TABLE_NAME, &table.name);
        });
    }

    /// Deletes a table with all that is in it, if there is one, and adds an empty one.
    pub fn reset_table(&mut self, table: &Table) {
        self.add_table(table);
        self.delete_table(table);
        self.add_table(table);
    }

    /// Deletes a table with all that is in it, if there is one.
    pub fn remove_table(&mut self, table: &Table) {
        self.add_table(table);
        self.delete_table(table);
    }

    /// Adds a chain that the kernel calls.
    pub fn add_base_chain(&mut self, table: &Table, chain: &str, base: BaseChain) {
        self.push("add", "chain", chain, table, NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message| {
            message.string(NFTA_CHAIN_TABLE, &table.name);
            message.string(NFTA_CHAIN_NAME, chain);
            message.nested(NFTA_CHAIN_HOOK, |hook| {
                hook.be32(NFTA_HOOK_HOOKNUM, base.hook as u32);
                hook.bytes(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
            });
            message.be32(NFTA_CHAIN_POLICY, u32::from(!base.drop));
            message.string(
                NFTA_CHAIN_TYPE,
                match base.kind {
                    ChainType::Filter => "filter",
                    ChainType::Nat => "nat",
                    ChainType::Route => "route",
                },
            );
        });
    }

    /// Adds a chain that the kernel calls for all that leaves by a device of this namespace (Linux 5.16). Only in tables
    /// of devices.
    pub fn add_egress_chain(&mut self, table: &Table, chain: &str, device: &str) {
        self.push("add", "chain", chain, table, NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message| {
            message.string(NFTA_CHAIN_TABLE, &table.name);
            message.string(NFTA_CHAIN_NAME, chain);
            message.nested(NFTA_CHAIN_HOOK, |hook| {
                // NF_NETDEV_EGRESS.
                hook.be32(NFTA_HOOK_HOOKNUM, 1);
                hook.be32(NFTA_HOOK_PRIORITY, 0);
                hook.string(NFTA_HOOK_DEV, device);
            });
            message.be32(NFTA_CHAIN_POLICY, 1);
            message.string(NFTA_CHAIN_TYPE, "filter");
        });
    }

    /// Adds a chain that rules lead to.
    pub fn add_chain(&mut self, table: &Table, chain: &str) {
        self.push("add", "chain", chain, table, NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message| {
            message.string(NFTA_CHAIN_TABLE, &table.name);
            message.string(NFTA_CHAIN_NAME, chain);
        });
    }

    /// Deletes a chain that no rule leads to any more, with its rules.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        self.flush_chain(table, chain);
        self.push("delete", "chain", chain, table, NFT_MSG_DELCHAIN, 0, |message| {
            message.string(NFTA_CHAIN_TABLE, &table.name);
            message.string(NFTA_CHAIN_NAME, chain);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.push("flush", "chain", chain, table, NFT_MSG_DELRULE, 0, |message| {
            message.string(NFTA_RULE_TABLE, &table.name);
            message.string(NFTA_RULE_CHAIN, chain);
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.push("add a rule to", "chain", chain, table, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            write_rule(message, table, chain, None, rule);
        });
    }

    /// Puts a rule in the place of another, named by its handle ([`super::Nft::rule_handles`]).
    pub fn replace_rule(&mut self, table: &Table, chain: &str, handle: u64, rule: &Rule) {
        self.push("replace a rule of", "chain", chain, table, NFT_MSG_NEWRULE, NLM_F_REPLACE, |message| {
            write_rule(message, table, chain, Some(handle), rule);
        });
    }

    /// Deletes a rule, named by its handle.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        self.push("delete a rule of", "chain", chain, table, NFT_MSG_DELRULE, 0, |message| {
            message.string(NFTA_RULE_TABLE, &table.name);
            message.string(NFTA_RULE_CHAIN, chain);
            message.be64(NFTA_RULE_HANDLE, handle);
        });
    }

    /// Adds a set or map.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.sets += 1;
        let id = self.sets;
        self.push("add", "set", &set.name, table, NFT_MSG_NEWSET, NLM_F_CREATE, |message| {
            message.string(NFTA_SET_TABLE, &table.name);
            set.write(message, id);
        });
    }

    /// Deletes a set or map that no rule uses any more, with its elements.
    pub fn delete_set(&mut self, table: &Table, set: &str) {
        self.push("delete", "set", set, table, NFT_MSG_DELSET, 0, |message| {
            message.string(NFTA_SET_TABLE, &table.name);
            message.string(NFTA_SET_NAME, set);
        });
    }

    /// Adds elements. One that is there already with the same data changes nothing; with other data it fails the whole.
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.elements("add elements to", table, set, NFT_MSG_NEWSETELEM, NLM_F_CREATE, part);
        }
    }

    /// Deletes elements by their keys.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.elements("delete elements of", table, set, NFT_MSG_DELSETELEM, 0, part);
        }
    }

    /// Deletes all elements.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.push("flush", "set", set, table, NFT_MSG_DELSETELEM, 0, |message| {
            message.string(NFTA_SET_ELEM_LIST_TABLE, &table.name);
            message.string(NFTA_SET_ELEM_LIST_SET, set);
        });
    }

    fn elements(&mut self, verb: &str, table: &Table, set: &str, kind: u16, flags: u16, part: &[Element]) {
        for element in part {
            if let super::set::Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) = &element.data {
                self.check(verb, "set", chain);
            }
        }
        self.push(verb, "set", set, table, kind, flags, |message| {
            message.string(NFTA_SET_ELEM_LIST_TABLE, &table.name);
            message.string(NFTA_SET_ELEM_LIST_SET, set);
            message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| part.iter().for_each(|element| element.write(list)));
        });
    }

    #[expect(clippy::too_many_arguments, reason = "verb, thing, name and table only make the error's text")]
    fn push(
        &mut self,
        verb: &str,
        thing: &str,
        name: &str,
        table: &Table,
        message: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer<'_>),
    ) {
        self.check(verb, thing, name);
        self.check(verb, "table", &table.name);
        self.actions.push(match thing {
            "table" => format!("{verb} table {table}"),
            _ => format!("{verb} {thing} {name} in table {table}"),
        });
        self.batch.message(kind(message), flags, |writer| {
            writer.raw(&[table.family.number(), 0, 0, 0]);
            fill(writer);
        });
    }

    /// Fails the whole: nothing is sent.
    pub(super) fn reject(&mut self, action: String, problem: String) {
        self.invalid.get_or_insert((action, problem));
    }

    /// Names that the kernel would cut off or that nft(8) could not read back fail the whole.
    fn check(&mut self, verb: &str, thing: &str, name: &str) {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '\\'));
        if !first || !rest || name.len() > NAME_MAX {
            let problem = format!("{name:?} cannot name a {thing}");
            self.invalid.get_or_insert((format!("{verb} {thing} {name:?}"), problem));
        }
    }

    pub(super) fn batch(&self) -> Result<&Batch, NetlinkError> {
        match &self.invalid {
            Some((action, problem)) => Err(NetlinkError::Invalid { action: action.clone(), problem: problem.clone() }),
            None => Ok(&self.batch),
        }
    }

    pub(super) fn action(&self, index: Option<usize>) -> String {
        let action = index.and_then(|index| self.actions.get(index)).cloned();
        // What the kernel finds wrong at the end only is not any single change's fault.
        action.unwrap_or_else(|| match self.actions.first() {
            Some(first) => format!("commit an nftables transaction of {} changes ({first} …)", self.actions.len()),
            None => "commit an nftables transaction".to_owned(),
        })
    }
}

fn write_rule(message: &mut Writer<'_>, table: &Table, chain: &str, handle: Option<u64>, rule: &Rule) {
    message.string(NFTA_RULE_TABLE, &table.name);
    message.string(NFTA_RULE_CHAIN, chain);
    if let Some(handle) = handle {
        message.be64(NFTA_RULE_HANDLE, handle);
    }
    message.nested(NFTA_RULE_EXPRESSIONS, |list| rule.expressions.iter().for_each(|each| each.write(list)));
    if let Some(comment) = &rule.comment {
        // NFTNL_UDATA_RULE_COMMENT: type 0, length with the zero byte, text. nft(8) takes 128 bytes at most.
        let text: String =
            comment.chars().filter(|c| (c.is_ascii_graphic() && *c != '"') || *c == ' ').take(100).collect();
        let mut bytes = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        message.bytes(NFTA_RULE_USERDATA, &bytes);
    }
}
