//! JSON as Docker prints it: four spaces in `inspect`, one object a line in listings.

use serde::Serialize;

/// Indented by four spaces, with a line feed.
pub(crate) fn pretty<T: Serialize + ?Sized>(value: &T) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).expect("our views have string keys and no failing serializers");
    out.push(b'\n');
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// On one line, without a line feed.
pub(crate) fn line<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("our views have string keys and no failing serializers")
}

/// As a value for templates.
pub(crate) fn value<T: Serialize + ?Sized>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).expect("our views have string keys and no failing serializers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inspect_is_indented_by_four() {
        assert_eq!(pretty(&serde_json::json!([{"ID": "a"}])), "[\n    {\n        \"ID\": \"a\"\n    }\n]\n");
    }
}
