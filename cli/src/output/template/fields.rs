//! Fields of our objects by their names, and what was meant by a name that is none. Used when a template is filled in.

use serde_json::{Map, Value};

use super::TemplateError;

/// Fields that JSON leaves out where they say nothing, as Docker's does, each with one that is always beside it: a template
/// finds no value there, so that `{{if .UpdateStatus}}` works.
const LEFT_OUT: [(&str, &str); 16] = [
    ("BindOptions", "Target"),
    ("Containers", "ContainerSpec"),
    ("Error", "Device"),
    ("Fabric", "Description"),
    ("Health", "ContainerID"),
    ("Healthcheck", "StopGracePeriod"),
    ("ManagerStatus", "Description"),
    ("Managers", "LocalNodeState"),
    ("Mesh", "Description"),
    ("Mesh", "WireGuardAddr"),
    ("Nodes", "LocalNodeState"),
    ("PublicKey", "WireGuardAddr"),
    ("Tasks", "VIP"),
    ("TmpfsOptions", "Target"),
    ("UpdateStatus", "ServiceStatus"),
    ("Variant", "Architecture"),
];
/// Fields that an error suggests.
const SUGGESTED: usize = 3;
/// Fields that an error lists where none is near.
const LISTED: usize = 30;
/// Objects within objects that are searched for a field.
const SEARCH_DEPTH: usize = 4;

/// The value of a field. `path` is how the template came to `value`, `rest` the fields that it asks for after this one.
/// `None`: there is no such key, and that is no mistake.
pub(super) fn get<'a>(
    value: &'a Value,
    path: &[String],
    name: &str,
    rest: &[String],
) -> Result<Option<&'a Value>, TemplateError> {
    let map = match value {
        Value::Object(map) => map,
        Value::Null => return Ok(None),
        _ => {
            let what = path.last().map_or_else(String::new, |last| format!(": {last} has no fields"));
            return Err(TemplateError::new(format!("can't evaluate field {name}{what}")));
        }
    };
    // Docker's objects have either, its templates both.
    let other = match name {
        "Id" => "ID",
        "ID" => "Id",
        other => other,
    };
    if let Some(found) = map.get(name).or_else(|| map.get(other)) {
        return Ok(Some(found));
    }
    let is_left_out = LEFT_OUT.iter().any(|(field, beside)| *field == name && map.contains_key(*beside));
    if is_left_out || !name.starts_with(char::is_uppercase) {
        return Ok(None);
    }
    Err(TemplateError::new(format!("can't evaluate field {name}{}", hint(map, path, name, rest))))
}

/// `: did you mean .Spec.Name?`, or which fields there are.
fn hint(map: &Map<String, Value>, path: &[String], name: &str, rest: &[String]) -> String {
    let mut found: Vec<String> = Vec::new();
    let mut add = |fields: &[&str]| {
        let text: String = path.iter().map(String::as_str).chain(fields.iter().copied()).fold(String::new(), dotted);
        if !found.contains(&text) && found.len() < SUGGESTED {
            found.push(text);
        }
    };
    // Of one that is written a little differently, of what it was to lead to, and of the same name further in.
    let near: Vec<&str> = map.keys().map(String::as_str).filter(|key| is_near(key, name)).collect();
    near.iter().for_each(|key| add(&[key]));
    if let Some(next) = rest.first().filter(|_| near.is_empty()).filter(|next| map.contains_key(next.as_str())) {
        add(&[next]);
    }
    let mut deeper = Vec::new();
    search(map, name, &mut Vec::new(), &mut deeper);
    deeper.iter().for_each(|fields| add(fields));
    if !found.is_empty() {
        return format!(": did you mean {}?", found.join(" or "));
    }
    let fields: Vec<&str> = map.keys().map(String::as_str).filter(|key| key.starts_with(char::is_uppercase)).collect();
    match fields.len() {
        0 => String::new(),
        1..=LISTED => format!(": there is {}", fields.join(", ")),
        _ => format!(": there is {} and more", fields[..LISTED].join(", ")),
    }
}

fn dotted(before: String, field: &str) -> String {
    before + "." + field
}

/// Where a field of that name is, in objects of objects.
fn search<'a>(map: &'a Map<String, Value>, name: &str, above: &mut Vec<&'a str>, found: &mut Vec<Vec<&'a str>>) {
    if above.len() >= SEARCH_DEPTH {
        return;
    }
    for (key, value) in map.iter().filter(|(key, _)| key.starts_with(char::is_uppercase)) {
        above.push(key);
        if above.len() > 1 && key.eq_ignore_ascii_case(name) {
            found.push(above.clone());
        }
        if let Value::Object(inner) = value {
            search(inner, name, above, found);
        }
        above.pop();
    }
    if above.is_empty() {
        found.sort_by_key(Vec::len);
    }
}

/// Whether one is the other with another case, or a slip or two of the fingers.
fn is_near(key: &str, name: &str) -> bool {
    if key.eq_ignore_ascii_case(name) {
        return true;
    }
    let letters = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
    let (key, name) = (letters(key), letters(name));
    let allowed = match key.len().min(name.len()) {
        0..=2 => return false,
        3..=5 => 1,
        _ => 2,
    };
    key.len().abs_diff(name.len()) <= allowed && distance(&key, &name) <= allowed
}

/// How many letters differ, are missing, too many, or swapped with their neighbour (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (row, x) in a.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, y) in b.iter().enumerate() {
            let changed = last[column] + usize::from(x != y);
            let mut least = changed.min(last[column + 1] + 1).min(next[column] + 1);
            if row > 0 && column > 0 && *x == b[column - 1] && a[row - 1] == *y {
                least = least.min(before[column - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut last, next);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::output::template::Template;

    fn fill(text: &str) -> Result<String, String> {
        let data = json!({
            "ID": "abc", "CreatedAt": "now", "ServiceStatus": {}, "Description": {"Hostname": "host1"},
            "Spec": {"Name": "web", "Labels": {"tier": "front"}, "Mode": {"Replicated": {"Replicas": 3}}},
            "Ports": [{"Target": 80}],
        });
        Template::parse(text).unwrap().render(&data).map_err(|error| error.to_string())
    }

    #[test]
    fn a_wrong_field_names_itself_and_what_may_be_meant() {
        for (text, error) in [
            ("{{.Name}}", "Name: did you mean .Spec.Name?"),
            ("{{.Hostname}}", "Hostname: did you mean .Description.Hostname?"),
            ("{{.Spec.Nmae}}", "Nmae: did you mean .Spec.Name?"),
            ("{{.spec.Name}}", ""),
            ("{{.Status.Spec}}", "Status: did you mean .Spec?"),
            ("{{.Createdat}}", "Createdat: did you mean .CreatedAt?"),
            ("{{.Replicas}}", "Replicas: did you mean .Spec.Mode.Replicated.Replicas?"),
            ("{{.ID.Short}}", "Short: ID has no fields"),
            ("{{(index .Ports 0).Publish}}", "Publish: there is Target"),
            ("{{.Nothing}}", "Nothing: there is CreatedAt, Description, ID, Ports, ServiceStatus, Spec"),
        ] {
            match error {
                "" => assert_eq!(fill(text).unwrap(), "<no value>", "{text}"),
                error => {
                    assert_eq!(fill(text).unwrap_err(), format!("template: can't evaluate field {error}"), "{text}")
                }
            }
        }
    }

    #[test]
    fn ids_have_two_names_and_what_is_left_out_has_no_value() {
        assert_eq!(fill("{{.Id}} {{.ID}}").unwrap(), "abc abc");
        assert_eq!(fill("{{if .UpdateStatus}}yes{{else}}no{{end}}{{.UpdateStatus.State}}").unwrap(), "no<no value>");
        assert!(fill("{{.Spec.UpdateStatus}}").is_err(), "only where it may be");
    }

    #[test]
    fn distances() {
        let apart = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        for (a, b, wanted) in
            [("", "", 0), ("", "ab", 2), ("name", "nmae", 1), ("name", "names", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((apart(a, b), apart(b, a)), (wanted, wanted), "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn a_distance_is_at_most_the_longer(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            prop_assert!(distance(&x, &y) <= x.len().max(y.len()));
            prop_assert_eq!(distance(&x, &y) == 0, a == b);
        }
    }
}
