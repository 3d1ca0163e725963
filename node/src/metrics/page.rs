//! A page in Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/). Pure.

use std::fmt::Write as _;

/// The media type of a page.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label names and values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page that grows by one family of samples after the other. Every figure is a gauge: what is, not what was counted since
/// some start.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, name: &'static str, help: &str) -> Family<'_> {
        // Writing to a String never fails.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        Family { page: self, name }
    }

    /// A family of one sample without labels.
    pub(super) fn one(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, help).sample(&[], value);
    }

    /// The page.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// A family that is being written.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Family<'_> {
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: f64) {
        let text = &mut self.page.text;
        text.push_str(self.name);
        for (at, (name, value)) in labels.iter().enumerate() {
            text.push(if at == 0 { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            escape(text, value);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

/// A label's value: a backslash, a quote and a line feed are written with a backslash.
fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.one("a", "What is.", 1.5);
        let mut family = page.family("b", "Of each.");
        family.sample(&[("name", "x\"y\\z\n"), ("state", "ready")], 1_800_000_000.0);
        family.sample(&[("name", "é")], 0.0);
        assert_eq!(
            page.into_text(),
            "# HELP a What is.\n# TYPE a gauge\na 1.5\n# HELP b Of each.\n# TYPE b gauge\n\
             b{name=\"x\\\"y\\\\z\\n\",state=\"ready\"} 1800000000\nb{name=\"é\"} 0\n"
        );
    }
}
