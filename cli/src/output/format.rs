//! `--format` and `--quiet` of listings and of `inspect`.
//!
//! A listing's rows are flat JSON objects with Docker's field names. Its default table is itself a template, so there is
//! one way to print; the header is the same template filled in with the columns' titles.

use serde_json::{Map, Value};

use super::template::Template;
use super::{json, table};
use crate::failure::Failure;

/// A kind of listing.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The default table, without the word `table`.
    pub(crate) template: &'static str,
    /// Every field with its title.
    pub(crate) fields: &'static [(&'static str, &'static str)],
    /// Field that `--quiet` prints.
    pub(crate) quiet: &'static str,
}

/// How a listing is printed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Format {
    /// A table by this template; `None`: the listing's own.
    Table(Option<Template>),
    /// One JSON object a line.
    Json,
    /// One filled-in template a line.
    Template(Template),
    /// Only the ids.
    Quiet,
}

impl Format {
    /// From the flags. `--format` wins over `--quiet`, except for tables, as in Docker.
    pub(crate) fn from_flags(format: Option<&str>, quiet: bool) -> Result<Self, Failure> {
        let format = format.map(|text| text.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n"));
        let parse = |text: &str| Template::parse(text).map_err(|error| Failure::Usage(format!("--format: {error}")));
        match format.as_deref() {
            None | Some("" | "table") if quiet => Ok(Self::Quiet),
            None | Some("" | "table") => Ok(Self::Table(None)),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(_) if quiet => Ok(Self::Quiet),
                Some(template) => Ok(Self::Table(Some(parse(template.trim_start())?))),
                None => Ok(Self::Template(parse(text)?)),
            },
        }
    }

    /// Whether cells are for a person: shortened, with the history indented.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self, Self::Table(_))
    }
}

impl Listing {
    /// Prints the rows.
    pub(crate) fn render(&self, rows: &[Map<String, Value>], format: &Format) -> Result<String, Failure> {
        match format {
            Format::Quiet => Ok(rows
                .iter()
                .map(|row| format!("{}\n", row.get(self.quiet).and_then(Value::as_str).unwrap_or_default()))
                .collect()),
            Format::Json => Ok(rows.iter().map(|row| format!("{}\n", json::line(row))).collect()),
            Format::Template(template) => rows.iter().map(|row| fill(template, row)).collect(),
            Format::Table(template) => {
                let own = Template::parse(self.template).expect("a listing's own template is tested");
                let template = template.as_ref().unwrap_or(&own);
                let mut text = fill(template, &self.header())?;
                for row in rows {
                    text.push_str(&fill(template, row)?);
                }
                Ok(table::align(&text))
            }
        }
    }

    fn header(&self) -> Map<String, Value> {
        self.fields.iter().map(|(field, title)| ((*field).to_owned(), Value::from(*title))).collect()
    }
}

fn fill(template: &Template, row: &Map<String, Value>) -> Result<String, Failure> {
    let mut text =
        template.render(&Value::Object(row.clone())).map_err(|error| Failure::Usage(format!("--format: {error}")))?;
    text.push('\n');
    Ok(text)
}

/// Prints objects as `inspect` does: an indented JSON array, one on a single line (`json`), or a template for each.
pub(crate) fn inspect(objects: &[Value], pretty: &str, format: Option<&str>) -> Result<String, Failure> {
    match format {
        None | Some("") => Ok(pretty.to_owned()),
        Some("json") => Ok(json::line(objects) + "\n"),
        Some(text) => {
            let failed = |error| Failure::Usage(format!("--format: {error}"));
            let template = Template::parse(text).map_err(failed)?;
            objects.iter().map(|object| template.render(object).map(|text| text + "\n").map_err(failed)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    const LISTING: Listing = Listing {
        template: "{{.ID}}{{if .Self}} *{{end}}\t{{.Name}}",
        fields: &[("ID", "ID"), ("Name", "NAME"), ("Self", "")],
        quiet: "ID",
    };

    fn rows() -> Vec<Map<String, Value>> {
        [json!({"ID": "a1", "Name": "web", "Self": true}), json!({"ID": "b2", "Name": "db", "Self": false})]
            .into_iter()
            .map(|row| row.as_object().unwrap().clone())
            .collect()
    }

    fn render(format: Option<&str>, quiet: bool) -> String {
        LISTING.render(&rows(), &Format::from_flags(format, quiet).unwrap()).unwrap()
    }

    #[test]
    fn every_form() {
        assert_eq!(render(None, false), "ID        NAME\na1 *      web\nb2        db\n");
        assert_eq!(render(None, true), "a1\nb2\n");
        assert_eq!(render(Some("table {{.Name}}"), false), "NAME\nweb\ndb\n");
        assert_eq!(render(Some("table {{.Name}}\\t{{.ID}}"), false), "NAME      ID\nweb       a1\ndb        b2\n");
        assert_eq!(render(Some("{{.Name}}={{.ID}}"), true), "web=a1\ndb=b2\n");
        assert_eq!(
            render(Some("json"), false),
            "{\"ID\":\"a1\",\"Name\":\"web\",\"Self\":true}\n{\"ID\":\"b2\",\"Name\":\"db\",\"Self\":false}\n"
        );
    }

    #[test]
    fn wrong_templates_are_usage_errors() {
        assert!(matches!(Format::from_flags(Some("{{"), false), Err(Failure::Usage(_))));
        let format = Format::from_flags(Some("{{.Nope}}"), false).unwrap();
        assert!(matches!(LISTING.render(&rows(), &format), Err(Failure::Usage(_))));
    }

    #[test]
    fn inspect_forms() {
        let objects = [json!({"ID": "a"})];
        assert_eq!(inspect(&objects, "pretty", None).unwrap(), "pretty");
        assert_eq!(inspect(&objects, "", Some("json")).unwrap(), "[{\"ID\":\"a\"}]\n");
        assert_eq!(inspect(&objects, "", Some("{{.ID}}")).unwrap(), "a\n");
    }
}
