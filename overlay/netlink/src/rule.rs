//! Rules that choose a routing table (`ip rule`).

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Malformed, Message, Writer};
use crate::rtnetlink::{Changes, Rtnetlink};
use crate::types::Prefix;

/// A rule: packets that match all that is set are routed by a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingRule {
    /// For IPv6 rather than IPv4.
    pub ipv6: bool,
    /// The smallest is asked first.
    pub priority: u32,
    /// The packet's mark, and which of its bits count.
    pub mark: Option<(u32, u32)>,
    /// Where packets come from.
    pub source: Option<Prefix>,
    /// Where packets go.
    pub destination: Option<Prefix>,
    /// The device through which packets came.
    pub input_device: Option<String>,
    /// The table.
    pub table: u32,
}

impl Changes {
    /// Adds a rule; refused where there is the same one.
    pub fn add_rule(&mut self, rule: &RoutingRule) {
        let action = format!("add routing rule {} to table {}", rule.priority, rule.table);
        self.push(action, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, |message| write(message, rule));
    }

    /// Deletes a rule.
    pub fn delete_rule(&mut self, rule: &RoutingRule) {
        let action = format!("delete routing rule {} to table {}", rule.priority, rule.table);
        self.push(action, RTM_DELRULE, 0, |message| write(message, rule));
    }
}

fn write(message: &mut Writer<'_>, rule: &RoutingRule) {
    let family = if rule.ipv6 { AF_INET6 } else { AF_INET };
    let length = |prefix: Option<Prefix>| prefix.map_or(0, |prefix| prefix.length);
    message.raw(&header(family, length(rule.destination), length(rule.source), FR_ACT_TO_TBL));
    message.u32(FRA_PRIORITY, rule.priority);
    message.u32(FRA_TABLE, rule.table);
    if let Some((mark, mask)) = rule.mark {
        message.u32(FRA_FWMARK, mark);
        message.u32(FRA_FWMASK, mask);
    }
    if let Some(source) = rule.source {
        message.ip(FRA_SRC, source.network());
    }
    if let Some(destination) = rule.destination {
        message.ip(FRA_DST, destination.network());
    }
    if let Some(device) = &rule.input_device {
        message.string(FRA_IIFNAME, device);
    }
}

/// `struct fib_rule_hdr`. The table follows as an attribute.
fn header(family: u8, destination: u8, source: u8, action: u8) -> [u8; 12] {
    [family, destination, source, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

impl Rtnetlink {
    /// The rules of both families that lead to a table, those of the kernel too.
    pub fn rules(&self) -> Result<Vec<RoutingRule>, NetlinkError> {
        self.dump("list routing rules", RTM_GETRULE, |message| message.raw(&header(AF_UNSPEC, 0, 0, 0)), parse)
    }
}

/// Reads an `RTM_NEWRULE`; `None` for any other message and for rules that lead to no table.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<RoutingRule>, Malformed> {
    if message.kind != RTM_NEWRULE {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(12)?;
    let &[family, to, from, _, table, _, _, action, ..] = fixed else { return Err(Malformed("a rule is too short")) };
    if action != FR_ACT_TO_TBL || !matches!(family, AF_INET | AF_INET6) {
        return Ok(None);
    }
    let (mut mark, mut mask) = (None, u32::MAX);
    let mut rule = RoutingRule {
        ipv6: family == AF_INET6,
        priority: 0,
        mark: None,
        source: None,
        destination: None,
        input_device: None,
        table: u32::from(table),
    };
    let prefix = |address, length| Prefix::new(address, length).ok_or(Malformed("a prefix is too long")).map(Some);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            FRA_PRIORITY => rule.priority = attribute.u32()?,
            FRA_TABLE => rule.table = attribute.u32()?,
            FRA_FWMARK => mark = Some(attribute.u32()?),
            FRA_FWMASK => mask = attribute.u32()?,
            FRA_SRC => rule.source = prefix(attribute.ip()?, from)?,
            FRA_DST => rule.destination = prefix(attribute.ip()?, to)?,
            FRA_IIFNAME => rule.input_device = Some(attribute.string()?),
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    Ok(Some(rule))
}
