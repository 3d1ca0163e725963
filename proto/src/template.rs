//! Placeholders in a spec's hostname, environment and mounts: `{{.Service.Name}}` and its kind.
//!
//! A node fills them in when it prepares a task ([`render`]); validation refuses mistakes before anything is made
//! ([`check`]). Pure.
//! The language is the part of Go's that Docker's users write: a path in double braces, blanks allowed around it, and
//! `index .Service.Labels "key"` for keys with dots. No control flow. The data of secrets and configs may also use the
//! functions `env`, `secret` and `config` ([`render_data`]), each with one quoted name.

use std::collections::BTreeMap;
use std::fmt;

/// Values that placeholders stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `.Service.ID`
    pub service_id: String,
    /// `.Service.Name`
    pub service_name: String,
    /// `.Service.Labels.x`. `None`: labels are not known here.
    pub service_labels: Option<BTreeMap<String, String>>,
    /// `.Node.ID`
    pub node_id: String,
    /// `.Node.Hostname`
    pub node_hostname: String,
    /// `.Node.Platform.OS`
    pub node_os: String,
    /// `.Node.Platform.Architecture`
    pub node_architecture: String,
    /// `.Task.ID`
    pub task_id: String,
    /// `.Task.Name`
    pub task_name: String,
    /// `.Task.Slot`; the node's id for a global service's task, as Docker does.
    pub task_slot: String,
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without its `}}`.
    #[error("{{{{ is never closed in {0:?}")]
    Unclosed(String),
    /// A placeholder that does not exist.
    #[error("{placeholder:?} is not a placeholder: there are {known}", known = Known)]
    Unknown {
        /// What stands in the braces.
        placeholder: String,
    },
    /// Labels of the service are not known where it is filled in.
    #[error("{0:?} is not supported yet: a node does not learn the labels of a service")]
    NoLabels(String),
}

/// Prints the list of placeholders.
struct Known;

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            ".Service.ID, .Service.Name, .Service.Labels.<label>, .Node.ID, .Node.Hostname, .Node.Platform.OS, \
             .Node.Platform.Architecture, .Task.ID, .Task.Name, .Task.Slot",
        )
    }
}

/// Whether a node will be able to fill in `text`: what [`render`] refuses for every task alike.
///
/// [`TemplateError::NoLabels`] is a placeholder that is not supported yet, the others are mistakes.
pub fn check(text: &str) -> Result<(), TemplateError> {
    render(text, &Facts::default()).map(drop)
}

/// Fills in `text`. Text without `{{` comes back unchanged.
pub fn render(text: &str, facts: &Facts) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, behind) = after.split_once("}}").ok_or_else(|| TemplateError::Unclosed(text.to_owned()))?;
        out.push_str(before);
        out.push_str(value(inside.trim(), facts)?);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of one placeholder.
fn value<'a>(placeholder: &str, facts: &'a Facts) -> Result<&'a str, TemplateError> {
    Ok(match placeholder {
        ".Service.ID" => &facts.service_id,
        ".Service.Name" => &facts.service_name,
        ".Node.ID" => &facts.node_id,
        ".Node.Hostname" => &facts.node_hostname,
        ".Node.Platform.OS" => &facts.node_os,
        ".Node.Platform.Architecture" => &facts.node_architecture,
        ".Task.ID" => &facts.task_id,
        ".Task.Name" => &facts.task_name,
        ".Task.Slot" => &facts.task_slot,
        other => return label(other, facts),
    })
}

/// `.Service.Labels.x` or `index .Service.Labels "x"`. A label that is not there is empty, as in Docker.
fn label<'a>(placeholder: &str, facts: &'a Facts) -> Result<&'a str, TemplateError> {
    let by_index = || {
        let quoted = placeholder.strip_prefix("index")?.trim_start().strip_prefix(".Service.Labels")?.trim();
        quoted.strip_prefix('"')?.strip_suffix('"')
    };
    let by_path =
        placeholder.strip_prefix(".Service.Labels.").filter(|key| !key.is_empty() && !key.contains(['.', ' ', '"']));
    let Some(key) = by_path.or_else(by_index) else {
        return Err(TemplateError::Unknown { placeholder: placeholder.to_owned() });
    };
    match &facts.service_labels {
        Some(labels) => Ok(labels.get(key).map_or("", String::as_str)),
        None => Err(TemplateError::NoLabels(placeholder.to_owned())),
    }
}

/// What the functions in the data of a secret or config look up.
pub trait Inside {
    /// A variable of the container's environment. `None`: there is none, which reads as empty, as in Docker.
    fn env(&self, name: &str) -> Option<&str>;
    /// The data, as they were stored, of the container's secret with that target.
    fn secret(&self, target: &str) -> Option<&[u8]>;
    /// The same of a config.
    fn config(&self, target: &str) -> Option<&[u8]>;
}

/// Why data are not a template. Names placeholders, and nothing else that stands in the data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// `{{` without its `}}`.
    #[error("the {{{{ in line {0} is never closed")]
    Unclosed(usize),
    /// A placeholder that does not exist. Its text may be part of a secret.
    #[error("the placeholder in line {line} does not exist: there are {known}, env \"NAME\", secret \"TARGET\" and config \"TARGET\"", known = Known)]
    Unknown {
        /// Counted from 1.
        line: usize,
    },
    /// A placeholder that exists, and that has no value here.
    #[error("line {line}: {error}")]
    Value {
        /// Counted from 1.
        line: usize,
        /// Why not.
        error: TemplateError,
    },
    /// A function's object.
    #[error(
        "the placeholder {function} {target:?} in line {line} has no value: the container has no {function} with that target"
    )]
    NoTarget {
        /// `secret` or `config`.
        function: &'static str,
        /// What it names.
        target: String,
        /// Counted from 1.
        line: usize,
    },
    /// More than a secret or config may have.
    #[error("it has {bytes} bytes when its placeholders are filled in, {limit} are allowed")]
    TooLarge {
        /// How many it would have.
        bytes: usize,
        /// How many it may.
        limit: usize,
    },
}

/// Fills in the data of a secret or config; at most `limit` bytes. What is not in braces may be any bytes. The result is the
/// only copy that is made.
pub fn render_data(data: &[u8], facts: &Facts, inside: &dyn Inside, limit: usize) -> Result<Vec<u8>, DataError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let (mut rest, mut line) = (data, 1);
    while let Some((before, after)) = split(rest, b"{{") {
        line += lines(before);
        let (placeholder, behind) = split(after, b"}}").ok_or(DataError::Unclosed(line))?;
        parts.push(before);
        parts.push(data_value(placeholder, facts, inside, line)?);
        line += lines(placeholder);
        rest = behind;
    }
    parts.push(rest);
    let bytes = parts.iter().map(|part| part.len()).sum();
    if bytes > limit {
        return Err(DataError::TooLarge { bytes, limit });
    }
    // Never grown: what a vector leaves behind when it grows stays in memory.
    let mut out = Vec::with_capacity(bytes);
    parts.into_iter().for_each(|part| out.extend_from_slice(part));
    Ok(out)
}

fn split<'a>(text: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let found = text.windows(at.len()).position(|window| window == at)?;
    Some((&text[..found], &text[found + at.len()..]))
}

fn lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn data_value<'a>(
    placeholder: &[u8],
    facts: &'a Facts,
    inside: &'a dyn Inside,
    line: usize,
) -> Result<&'a [u8], DataError> {
    let placeholder = std::str::from_utf8(placeholder).map_err(|_| DataError::Unknown { line })?.trim();
    let call = placeholder.split_once(|c: char| c.is_whitespace() || c == '"' || c == '`');
    let argument = |function: &str| quoted(placeholder.strip_prefix(function)?);
    match call.map(|(name, _)| name) {
        Some("env") => match argument("env") {
            Some(name) => return Ok(inside.env(name).unwrap_or_default().as_bytes()),
            None => return Err(DataError::Unknown { line }),
        },
        Some("secret") => {
            let target = argument("secret").ok_or(DataError::Unknown { line })?;
            let missing = || DataError::NoTarget { function: "secret", target: target.to_owned(), line };
            return inside.secret(target).ok_or_else(missing);
        }
        Some("config") => {
            let target = argument("config").ok_or(DataError::Unknown { line })?;
            let missing = || DataError::NoTarget { function: "config", target: target.to_owned(), line };
            return inside.config(target).ok_or_else(missing);
        }
        _ => {}
    }
    match value(placeholder, facts) {
        Ok(text) => Ok(text.as_bytes()),
        Err(TemplateError::Unknown { .. } | TemplateError::Unclosed(_)) => Err(DataError::Unknown { line }),
        Err(error @ TemplateError::NoLabels(_)) => Err(DataError::Value { line, error }),
    }
}

/// A Go string: `"x"` or `` `x` ``. Names have no escapes.
fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = ['"', '`'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))?;
    (!inner.contains(['"', '`', '\\'])).then_some(inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            service_id: "sid".into(),
            service_name: "web".into(),
            service_labels: Some([("zone".to_owned(), "a".to_owned())].into()),
            node_id: "nid".into(),
            node_hostname: "host1".into(),
            node_os: "linux".into(),
            node_architecture: "amd64".into(),
            task_id: "tid".into(),
            task_name: "web.3.tid".into(),
            task_slot: "3".into(),
        }
    }

    #[test]
    fn every_placeholder() {
        let text = "{{.Service.ID}} {{.Service.Name}} {{.Service.Labels.zone}} {{.Node.ID}} {{.Node.Hostname}} \
                    {{.Node.Platform.OS}} {{.Node.Platform.Architecture}} {{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}";
        assert_eq!(render(text, &facts()).unwrap(), "sid web a nid host1 linux amd64 tid web.3.tid 3");
    }

    #[test]
    fn blanks_missing_labels_and_index() {
        assert_eq!(render("<{{ .Task.Slot }}|{{.Service.Labels.none}}>", &facts()).unwrap(), "<3|>");
        assert_eq!(render("{{index .Service.Labels \"zone\"}}", &facts()).unwrap(), "a");
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = render("{{.Task.Nmae}}", &facts()).unwrap_err();
        assert!(unknown.to_string().starts_with("\".Task.Nmae\" is not a placeholder: there are .Service.ID"));
        assert_eq!(render("a {{.Task.ID", &facts()).unwrap_err().to_string(), "{{ is never closed in \"a {{.Task.ID\"");
        let unlabelled = Facts { service_labels: None, ..facts() };
        assert!(matches!(render("{{.Service.Labels.zone}}", &unlabelled), Err(TemplateError::NoLabels(_))));
    }

    #[test]
    fn mistakes_are_found_without_facts() {
        assert_eq!(check("{{.Node.Hostname}}-{{.Task.Slot}}"), Ok(()));
        assert!(matches!(check("{{.Bogus}}"), Err(TemplateError::Unknown { .. })));
        assert!(matches!(check("{{.Task.ID"), Err(TemplateError::Unclosed(_))));
        for labels in ["{{.Service.Labels.zone}}", "{{index .Service.Labels \"a.b\"}}"] {
            assert!(check(labels).unwrap_err().to_string().contains("not supported yet"));
        }
    }

    /// A container with one secret, one config and one variable.
    struct Example;

    impl Inside for Example {
        fn env(&self, name: &str) -> Option<&str> {
            (name == "MODE").then_some("fast")
        }

        fn secret(&self, target: &str) -> Option<&[u8]> {
            (target == "db").then_some(b"hunter2\xff")
        }

        fn config(&self, target: &str) -> Option<&[u8]> {
            (target == "/etc/app.conf").then_some(b"{{.Task.Slot}}")
        }
    }

    fn filled(data: &[u8]) -> Result<Vec<u8>, DataError> {
        render_data(data, &facts(), &Example, 100)
    }

    #[test]
    fn data_may_use_functions_and_be_any_bytes() {
        let data =
            b"\xfe{{.Service.Name}} {{env \"MODE\"}} {{ env `NONE` }}|{{secret \"db\"}}|{{config \"/etc/app.conf\"}}\n";
        // What a function yields is not filled in again.
        assert_eq!(filled(data).unwrap(), b"\xfeweb fast |hunter2\xff|{{.Task.Slot}}\n");
        assert_eq!(filled(b"").unwrap(), b"");
        assert_eq!(filled(b"{\"a\":{}}").unwrap(), b"{\"a\":{}}");
    }

    #[test]
    fn mistakes_in_data_are_told_without_the_data() {
        let told = |data: &[u8]| filled(data).unwrap_err().to_string();
        let unknown = told(b"a\nb {{hunter2}}");
        assert!(unknown.starts_with("the placeholder in line 2 does not exist: there are .Service.ID"), "{unknown}");
        for data in [&b"{{hunter2"[..], b"{{hunter2 \"x\"}}", b"{{env hunter2}}", b"{{\xffhunter2}}", b"{{secret}}"] {
            let text = told(data);
            assert!(!text.contains("hunter2") && text.contains("line 1"), "{text}");
        }
        assert_eq!(
            told(b"\n{{secret \"other\"}}"),
            "the placeholder secret \"other\" in line 2 has no value: the container has no secret with that target"
        );
        let large = told(&[b'x'; 101]);
        assert_eq!(large, "it has 101 bytes when its placeholders are filled in, 100 are allowed");
        let unlabelled = Facts { service_labels: None, ..facts() };
        let text = render_data(b"{{.Service.Labels.zone}}", &unlabelled, &Example, 9).unwrap_err().to_string();
        assert!(text.starts_with("line 1: ") && text.contains("not supported yet"), "{text}");
    }

    proptest! {
        #[test]
        fn any_data_are_filled_in_or_refused(data: Vec<u8>) {
            match filled(&data) {
                Ok(out) => prop_assert!(out == data || data.windows(2).any(|two| two == b"{{")),
                Err(error) => prop_assert!(error.to_string().len() < 400),
            }
        }

        #[test]
        fn text_without_braces_is_unchanged(text in "[^{]*") {
            prop_assert_eq!(render(&text, &facts()).unwrap(), text);
        }

        #[test]
        fn any_text_is_rendered_or_refused(text: String) {
            let rendered = render(&text, &facts());
            // A node of today knows no labels; all else is filled in if the check lets it pass.
            prop_assert!(check(&text).is_err() || rendered.is_ok());
        }
    }
}
