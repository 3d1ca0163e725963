//! Templates against what Go prints for the same.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Template;

fn data() -> Value {
    json!({
        "ID": "abc", "Name": "web", "Replicas": 3, "Zero": 0, "Up": true, "Empty": "",
        "Spec": {"Labels": {"zone": "a", "app.kubernetes.io": "x"}, "Args": ["one", "two"], "None": []},
        "Ports": [{"Target": 80}, {"Target": 443}],
    })
}

fn render(text: &str) -> String {
    Template::parse(text).unwrap().render(&data()).unwrap()
}

fn fails(text: &str) -> String {
    match Template::parse(text) {
        Err(error) => error.to_string(),
        Ok(template) => template.render(&data()).unwrap_err().to_string(),
    }
}

#[test]
fn fields_and_text() {
    assert_eq!(render("{{.Name}}:{{ .ID }}"), "web:abc");
    assert_eq!(render("{{.Spec.Labels.zone}}"), "a");
    assert_eq!(render("{{.Spec.Labels}}"), "map[app.kubernetes.io:x zone:a]");
    assert_eq!(render("{{.Spec.Args}} {{.Replicas}} {{.Up}}"), "[one two] 3 true");
    assert_eq!(render("{{$.Name}} {{.}}").get(..3), Some("web"));
    assert_eq!(render("plain }} text"), "plain }} text");
}

#[test]
fn functions() {
    assert_eq!(render("{{json .Spec.Args}}"), r#"["one","two"]"#);
    assert_eq!(render("{{.Name | upper | printf \"%s!\"}}"), "WEB!");
    assert_eq!(render("{{join .Spec.Args \", \"}}"), "one, two");
    assert_eq!(render("{{len .Ports}}"), "2");
    assert_eq!(render("{{println .Name .Replicas}}"), "web 3\n");
    assert_eq!(render("{{index .Spec.Args 1}}"), "two");
    assert_eq!(render("{{index .Spec.Labels \"app.kubernetes.io\"}}"), "x");
    assert_eq!(render("{{(index .Ports 0).Target}}"), "80");
    assert_eq!(render("{{title .Name}} {{split \"a:b\" \":\"}}"), "Web [a b]");
    assert_eq!(render("{{printf \"%-5s|%5d|%q|%.1f\" .Name .Replicas .ID 2.55}}"), "web  |    3|\"abc\"|2.5");
    assert_eq!(render("{{pad .Name 1 2}}|{{truncate .Name 2}}"), " web  |we");
    assert_eq!(
        render("{{eq .Replicas 3}} {{ne .Name \"x\"}} {{gt .Replicas 2}} {{and .Up .Zero}}"),
        "true true true 0"
    );
}

#[test]
fn blocks() {
    assert_eq!(render("{{if .Up}}yes{{else}}no{{end}}"), "yes");
    assert_eq!(render("{{if .Zero}}a{{else if .Empty}}b{{else}}c{{end}}"), "c");
    assert_eq!(render("{{range .Ports}}{{.Target}} {{end}}"), "80 443 ");
    assert_eq!(render("{{range $i, $p := .Ports}}{{$i}}={{$p.Target}};{{end}}"), "0=80;1=443;");
    assert_eq!(render("{{range $k, $v := .Spec.Labels}}{{$k}}={{$v}} {{end}}"), "app.kubernetes.io=x zone=a ");
    assert_eq!(render("{{range .Spec.None}}x{{else}}none{{end}}"), "none");
    assert_eq!(render("{{with .Spec}}{{.Labels.zone}}{{$.Name}}{{end}}"), "aweb");
    assert_eq!(render("{{with $x := .Name}}{{$x}}{{end}}"), "web");
    assert_eq!(render("{{$x := 1}}{{if .Up}}{{$x = 2}}{{end}}{{$x}}"), "2");
    assert_eq!(render("a {{- /* gone */ -}} b {{- .Name -}} c"), "abwebc");
}

#[test]
fn missing_labels_have_no_value_but_missing_fields_are_errors() {
    assert_eq!(render("{{.Spec.Labels.nowhere}}"), "<no value>");
    assert_eq!(fails("{{.Nmae}}"), "template: can't evaluate field Nmae: did you mean .Name?");
    assert_eq!(fails("{{.Name.First}}"), "template: can't evaluate field First: Name has no fields");
}

#[test]
fn mistakes_are_found_at_parse_time() {
    for text in [
        "{{",
        "{{.Name",
        "{{if}}",
        "{{if .Up}}",
        "{{end}}",
        "{{else}}",
        "{{nope .Name}}",
        "{{.Name | }}",
        "{{\"open}}",
        "{{(.Name}}",
        "{{.Name)}}",
        "{{range $a, $b, $c := .Ports}}{{end}}",
        "{{}}",
        "{{.A | .B}}",
        "{{/* open }}",
        "{{if .Up}}{{else}}{{else}}{{end}}",
        "{{#}}",
        "{{\"\\q\"}}",
    ] {
        assert!(Template::parse(text).is_err(), "{text}");
    }
    assert!(fails("{{nope}}").contains("function \"nope\" is not defined"));
    assert!(fails(&"{{if .Up}}".repeat(100)).contains("nested"));
    assert!(fails(&format!("{{{{{}}}}}", "(".repeat(5000))).contains("nested"));
}

proptest! {
    #[test]
    fn never_panics(text in "[{}.|$a-zA-Z\"`()0-9 :=,-]{0,60}", wild: String) {
        for text in [text.clone(), format!("{{{{{text}}}}}"), wild] {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.render(&data());
            }
        }
    }

    #[test]
    fn text_without_actions_is_kept(text in "[^{]{0,80}") {
        prop_assert_eq!(Template::parse(&text).unwrap().render(&Value::Null).unwrap(), text);
    }
}
