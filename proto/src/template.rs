//! Placeholders in a spec's hostname, environment and mounts: `{{.Service.Name}}` and its kind.
//!
//! A node fills them in when it prepares a task ([`render`]); validation refuses mistakes before anything is made
//! ([`check`]). Pure.
//! The language is the part of Go's that Docker's users write: a path in double braces, blanks allowed around it, and
//! `index .Service.Labels "key"` for keys with dots. No functions, no control flow.

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

    proptest! {
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
