//! The form in which the agent's messages to its helpers hold text: `key=value` ended by NUL, because a path may hold every
//! other byte.
//!
//! Used by [`config`](crate::config), [`plan`](crate::plan) and [`entry`](crate::entry). Pure.

use std::fmt::{Display, Write as _};
use std::io;

/// A message that is being written.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    text: String,
    /// The field whose value holds a NUL: what comes behind it would be read as a field of its own.
    split: Option<String>,
}

impl Fields {
    /// With room for `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), split: None }
    }

    /// Adds a field.
    pub(crate) fn put(&mut self, key: &str, value: impl Display) {
        let begin = self.text.len();
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{key}={value}");
        if self.text.as_bytes()[begin..].contains(&0) {
            self.split.get_or_insert_with(|| key.to_owned());
        }
        self.text.push('\0');
    }

    /// Adds a field for each value.
    pub(crate) fn put_all(&mut self, key: &str, values: &[impl Display]) {
        values.iter().for_each(|value| self.put(key, value));
    }

    /// The message, unless a value holds a NUL.
    pub(crate) fn finish(self) -> io::Result<String> {
        match self.split {
            None => Ok(self.text),
            Some(key) => Err(io::Error::other(format!("a value of {key:?} holds a zero byte"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_value_cannot_smuggle_a_field_in() {
        let mut fields = Fields::default();
        fields.put("env", "A=b");
        fields.put("uid", 7);
        assert_eq!(fields.finish().unwrap(), "env=A=b\0uid=7\0");
        let mut fields = Fields::default();
        fields.put_all("env", &["A=b\0uid=0".to_owned()]);
        assert!(fields.finish().unwrap_err().to_string().contains("env"));
    }
}
