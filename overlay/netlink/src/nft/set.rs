//! Sets and maps, and what is in them.

use super::expression::Verdict;
use super::value::{Field, Value};
use crate::kernel::*;
use crate::message::Writer;

/// `NFT_SET_MAP`.
const MAP: u32 = 8;
/// `NFT_DATA_VERDICT`.
const VERDICT: u32 = 0xffff_ff00;
/// `NFTNL_UDATA_SET_KEYBYTEORDER` and `NFTNL_UDATA_SET_DATABYTEORDER` (libnftnl), and nft(8)'s number of the machine's
/// order: so `nft list` shows numbers as they are meant.
const KEY_ORDER: u8 = 0;
const DATA_ORDER: u8 = 1;
const MACHINE_ORDER: u32 = 1;

/// A set or map to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name in its table.
    pub name: String,
    /// What its keys are made of.
    pub key: Vec<Field>,
    /// What it holds for each key.
    pub holds: Holds,
    /// Most elements that it can have; `None`: no limit, and it grows as needed.
    pub size: Option<u32>,
}

/// What a set or map holds for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// Nothing: a set.
    Nothing,
    /// Values: a map.
    Values(Vec<Field>),
    /// Verdicts: a verdict map.
    Verdicts,
}

impl Set {
    /// A set.
    pub fn new(name: impl Into<String>, key: &[Field]) -> Self {
        Self { name: name.into(), key: key.to_vec(), holds: Holds::Nothing, size: None }
    }

    /// A map of values.
    pub fn map(name: impl Into<String>, key: &[Field], data: &[Field]) -> Self {
        Self { holds: Holds::Values(data.to_vec()), ..Self::new(name, key) }
    }

    /// A map of verdicts.
    pub fn verdicts(name: impl Into<String>, key: &[Field]) -> Self {
        Self { holds: Holds::Verdicts, ..Self::new(name, key) }
    }

    /// Writes all but the table. `id` names it within a transaction.
    pub(super) fn write(&self, message: &mut Writer<'_>, id: u32) {
        message.string(NFTA_SET_NAME, &self.name);
        let (key_type, key_length) = describe(&self.key);
        message.be32(NFTA_SET_FLAGS, if self.holds == Holds::Nothing { 0 } else { MAP });
        message.be32(NFTA_SET_KEY_TYPE, key_type);
        message.be32(NFTA_SET_KEY_LEN, key_length);
        match &self.holds {
            Holds::Nothing => {}
            Holds::Values(fields) => {
                let (data_type, data_length) = describe(fields);
                message.be32(NFTA_SET_DATA_TYPE, data_type);
                message.be32(NFTA_SET_DATA_LEN, data_length);
            }
            Holds::Verdicts => message.be32(NFTA_SET_DATA_TYPE, VERDICT),
        }
        message.be32(NFTA_SET_ID, id);
        if let Some(size) = self.size {
            message.nested(NFTA_SET_DESC, |description| description.be32(NFTA_SET_DESC_SIZE, size));
        }
        let mut order = Vec::new();
        let mut note = |kind: u8| {
            order.extend_from_slice(&[kind, 4]);
            order.extend_from_slice(&MACHINE_ORDER.to_ne_bytes());
        };
        let ours = |fields: &[Field]| matches!(fields, [Field::Number | Field::Mark]);
        if ours(&self.key) {
            note(KEY_ORDER);
        }
        if matches!(&self.holds, Holds::Values(fields) if ours(fields)) {
            note(DATA_ORDER);
        }
        if !order.is_empty() {
            message.bytes(NFTA_SET_USERDATA, &order);
        }
    }
}

/// nft(8)'s number of a row of types (six bits each), and its length in bytes.
fn describe(fields: &[Field]) -> (u32, u32) {
    let kind = fields.iter().fold(0, |kind, field| kind << 6 | field.type_number());
    let length = match fields {
        [one] => u32::try_from(one.length()).unwrap_or(0),
        many => many.iter().map(|field| field.registers() * 4).sum(),
    };
    (kind, length)
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Made of what the set's key is made of.
    pub key: Value,
    /// What a map has for it.
    pub data: Data,
}

/// What a map has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing: the element of a set, or one that is to be deleted.
    None,
    /// A value.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

impl Element {
    /// Of a set, or to be deleted.
    pub fn new(key: Value) -> Self {
        Self { key, data: Data::None }
    }

    /// Of a map.
    pub fn value(key: Value, value: Value) -> Self {
        Self { key, data: Data::Value(value) }
    }

    /// Of a verdict map.
    pub fn verdict(key: Value, verdict: Verdict) -> Self {
        Self { key, data: Data::Verdict(verdict) }
    }

    /// Writes one element of a list.
    pub(super) fn write(&self, list: &mut Writer<'_>) {
        list.nested(NFTA_LIST_ELEM, |element| {
            element.nested(NFTA_SET_ELEM_KEY, |key| key.bytes(NFTA_DATA_VALUE, self.key.bytes()));
            match &self.data {
                Data::None => {}
                Data::Value(value) => {
                    element.nested(NFTA_SET_ELEM_DATA, |data| data.bytes(NFTA_DATA_VALUE, value.bytes()));
                }
                Data::Verdict(verdict) => element.nested(NFTA_SET_ELEM_DATA, |data| verdict.write(data)),
            }
        });
    }
}
