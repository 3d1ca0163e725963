//! The table of rights has a row for every method of every service in `v1/*.proto`, and no other.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use skep_proto::access;

#[test]
fn every_method_has_exactly_one_rule() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("v1");
    // Whatever lies there, also a file that the generator was not told of.
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: Vec<String> = files.filter(|name| name.ends_with(".proto")).collect();
    let descriptors = protox::compile(files, [&folder]).unwrap();
    let mut methods = BTreeSet::new();
    for file in &descriptors.file {
        assert_eq!(file.package(), "skep.v1");
        for service in &file.service {
            for method in &service.method {
                assert!(methods.insert(format!("{}.{}", service.name(), method.name())));
            }
        }
    }
    let rules: Vec<String> = access::rules().map(|rule| rule.to_string()).collect();
    let ruled: BTreeSet<String> = rules.iter().cloned().collect();
    assert_eq!(ruled.len(), rules.len(), "a method has two rows");
    let without: Vec<_> = methods.difference(&ruled).collect();
    assert!(without.is_empty(), "nobody may call these: say in proto/src/access.rs who may: {without:?}");
    let unknown: Vec<_> = ruled.difference(&methods).collect();
    assert!(unknown.is_empty(), "proto/src/access.rs has rows of no method: {unknown:?}");
    for rule in access::rules() {
        let path = format!("/skep.v1.{}/{}", rule.service, rule.method);
        assert_eq!(access::rule(&path), Some(rule));
    }
}
