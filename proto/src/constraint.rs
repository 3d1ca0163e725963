//! The language of placement constraints: `key==value` and `key!=value`, joined by "and". Parsed here so that a spec
//! is refused early; matched against nodes by the scheduler.

use std::fmt;
use std::net::IpAddr;

/// One parsed constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub key: Key,
    pub operator: Operator,
    /// Compared without regard to case.
    pub value: Value,
}

/// What of a node is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    NodeId,
    NodeHostname,
    NodeRole,
    /// An address or a network in CIDR form.
    NodeIp,
    PlatformOs,
    PlatformArch,
    /// `node.labels.<name>`: set by operators.
    NodeLabel(String),
    /// `engine.labels.<name>`: from the daemon's configuration.
    EngineLabel(String),
}

/// How it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
}

/// What it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    /// Address and length of the prefix in bits.
    Network(IpAddr, u8),
}

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("constraint {0:?} has no operator: write key==value or key!=value")]
    Operator(String),
    #[error(
        "constraint {text:?} compares {key:?}, which does not exist: use node.id, node.hostname, node.role, node.ip, \
         node.platform.os, node.platform.arch, node.labels.<name> or engine.labels.<name>"
    )]
    Key { text: String, key: String },
    #[error("constraint {0:?} has no value")]
    Value(String),
    #[error("constraint {0:?} needs an IP address or a network such as 10.0.0.0/8")]
    Address(String),
}

impl Constraint {
    /// Parses one constraint; spaces around key and value do not count.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let (operator, at) = [(Operator::Equal, text.find("==")), (Operator::NotEqual, text.find("!="))]
            .into_iter()
            .filter_map(|(operator, at)| Some((operator, at?)))
            .min_by_key(|(_, at)| *at)
            .ok_or_else(|| ConstraintError::Operator(text.to_owned()))?;
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        if value.is_empty() {
            return Err(ConstraintError::Value(text.to_owned()));
        }
        let key = parse_key(key).ok_or_else(|| ConstraintError::Key { text: text.to_owned(), key: key.to_owned() })?;
        let value = if key == Key::NodeIp {
            parse_network(value).ok_or_else(|| ConstraintError::Address(text.to_owned()))?
        } else {
            Value::Text(value.to_owned())
        };
        Ok(Self { key, operator, value })
    }
}

/// Keys ignore case, except a label's name.
fn parse_key(key: &str) -> Option<Key> {
    let lower = key.to_ascii_lowercase();
    match lower.as_str() {
        "node.id" => return Some(Key::NodeId),
        "node.hostname" => return Some(Key::NodeHostname),
        "node.role" => return Some(Key::NodeRole),
        "node.ip" => return Some(Key::NodeIp),
        "node.platform.os" => return Some(Key::PlatformOs),
        "node.platform.arch" => return Some(Key::PlatformArch),
        _ => {}
    }
    for (prefix, make) in [
        ("node.labels.", Key::NodeLabel as fn(String) -> Key),
        ("engine.labels.", Key::EngineLabel as fn(String) -> Key),
    ] {
        let name = key.get(prefix.len()..).filter(|name| lower.starts_with(prefix) && !name.is_empty());
        // One with a part of an operator would be another constraint when it is written down.
        if let Some(name) = name.filter(|name| !name.contains(['!', '='])) {
            return Some(make(name.to_owned()));
        }
    }
    None
}

fn parse_network(text: &str) -> Option<Value> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?),
        None => {
            let address = text.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some(Value::Network(address, length))
}

/// A spread preference: the label over whose values tasks are spread.
pub fn parse_spread(text: &str) -> Result<Key, ConstraintError> {
    match parse_key(text.trim()) {
        Some(key @ (Key::NodeLabel(_) | Key::EngineLabel(_))) => Ok(key),
        _ => Err(ConstraintError::Key { text: text.to_owned(), key: text.to_owned() }),
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match self.operator {
            Operator::Equal => "==",
            Operator::NotEqual => "!=",
        };
        match &self.value {
            Value::Text(text) => write!(f, "{}{operator}{text}", self.key),
            Value::Network(address, length) => {
                write!(f, "{}{operator}{address}/{length}", self.key)
            }
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeId => f.write_str("node.id"),
            Self::NodeHostname => f.write_str("node.hostname"),
            Self::NodeRole => f.write_str("node.role"),
            Self::NodeIp => f.write_str("node.ip"),
            Self::PlatformOs => f.write_str("node.platform.os"),
            Self::PlatformArch => f.write_str("node.platform.arch"),
            Self::NodeLabel(name) => write!(f, "node.labels.{name}"),
            Self::EngineLabel(name) => write!(f, "engine.labels.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn swarms_keys_are_understood() {
        let parsed = Constraint::parse("node.labels.Zone == eu-1").unwrap();
        assert_eq!(parsed.key, Key::NodeLabel("Zone".into()));
        assert_eq!(parsed.value, Value::Text("eu-1".into()));
        assert_eq!(Constraint::parse("NODE.ROLE!=manager").unwrap().operator, Operator::NotEqual);
        assert_eq!(
            Constraint::parse("node.ip==10.0.0.0/8").unwrap().value,
            Value::Network("10.0.0.0".parse().unwrap(), 8)
        );
    }

    #[test]
    fn mistakes_are_named() {
        assert!(matches!(Constraint::parse("node.role"), Err(ConstraintError::Operator(_))));
        assert!(matches!(Constraint::parse("node.colour==red"), Err(ConstraintError::Key { .. })));
        assert!(matches!(Constraint::parse("node.id=="), Err(ConstraintError::Value(_))));
        assert!(matches!(Constraint::parse("node.ip==10.0.0.0/33"), Err(ConstraintError::Address(_))));
        assert!(parse_spread("node.hostname").is_err());
    }

    /// Written down, `node.labels.a! ==x` would be another constraint: `node.labels.a!==x`.
    #[test]
    fn a_label_with_a_part_of_an_operator_is_none() {
        for text in ["node.labels.a! ==x", "node.labels.a= ==x", "engine.labels.! ==x"] {
            assert!(matches!(Constraint::parse(text), Err(ConstraintError::Key { .. })), "{text}");
        }
        assert!(Constraint::parse("node.labels.a !=x").is_ok());
    }

    proptest! {
        #[test]
        fn printed_constraints_parse_again(text in "\\PC{0,40}") {
            if let Ok(constraint) = Constraint::parse(&text) {
                prop_assert_eq!(Constraint::parse(&constraint.to_string()).unwrap(), constraint);
            }
        }
    }
}
