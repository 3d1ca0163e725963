//! Go templates, as far as Docker's `--format` needs them: fields, pipelines, `if`, `else`, `range`, `with`, variables,
//! and the functions in `functions.rs`. Used by listings and `inspect`.
//!
//! Values are JSON. A field that is missing is an error if its name begins with an upper-case letter, as those are the
//! fields of our objects and a typing error otherwise goes unseen; any other missing key (a label) is `<no value>`, as
//! in Go. Never does I/O, never panics, and nesting is bounded, whatever the text.

mod eval;
mod fields;
mod functions;
mod lex;
mod parse;

use serde_json::Value;

pub(crate) use eval::text_of;

/// Nesting of blocks and parentheses; far more than anyone writes by hand.
const MAX_DEPTH: usize = 64;

/// Why a template is not one, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub(crate) struct TemplateError(String);

impl TemplateError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Reads a template. All syntax errors and unknown functions are found here.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(lex::lex(text)?)? })
    }

    /// Fills it in with `data` as the dot.
    pub(crate) fn render(&self, data: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data)
    }
}

#[cfg(test)]
mod template_test;
