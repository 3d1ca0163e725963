//! What `inspect --pretty` prints: lines of a name and a value, the values in one column. Pure.

/// A page that is being written.
#[derive(Debug)]
pub(super) struct Page {
    /// Column of the values.
    width: usize,
    text: String,
}

impl Page {
    /// An empty one; values begin in this column.
    pub(super) fn new(width: usize) -> Self {
        Self { width, text: String::new() }
    }

    /// All lines, with an end.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// `Name:   value`
    pub(super) fn line(&mut self, name: &str, value: &str) {
        let line = format!("{:width$}{value}", format!("{name}:"), width = self.width);
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Nothing where there is no value.
    pub(super) fn some(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(name, value);
        }
    }

    /// A heading and a line for each, or nothing.
    pub(super) fn pairs(&mut self, name: &str, pairs: impl Iterator<Item = String>) {
        let pairs: Vec<String> = pairs.collect();
        if !pairs.is_empty() {
            self.line(name, "");
            pairs.iter().for_each(|pair| self.item(pair));
        }
    }

    /// One line below a heading.
    pub(super) fn item(&mut self, text: &str) {
        self.text.push_str(&format!(" {text}\n"));
    }
}
