//! Judges what clients saw against what the managers hold in the end. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Append, History, Outcome, words};

/// What all managers hold in the end: names with their content.
pub(crate) type Held = BTreeMap<String, String>;

/// What is wrong, in words. Empty: nothing.
pub(crate) fn judge(history: &History, held: &Held) -> Vec<String> {
    let mut wrong = Vec::new();
    let lists = final_lists(history, held);
    appends(history, &lists, &mut wrong);
    order(history, &lists, &mut wrong);
    reads(history, &lists, &mut wrong);
    onces(history, held, &mut wrong);
    versions(history, &mut wrong);
    wrong
}

type Lists = BTreeMap<String, Vec<String>>;

fn final_lists(history: &History, held: &Held) -> Lists {
    let names: BTreeSet<&String> = history.appends.iter().map(|append| &append.list).collect();
    let content = |name: &String| held.get(name).map(|content| words(content)).unwrap_or_default();
    names.into_iter().map(|name| (name.clone(), content(name))).collect()
}

fn count(lists: &Lists, append: &Append) -> usize {
    lists.get(&append.list).map_or(0, |list| list.iter().filter(|word| **word == append.word).count())
}

/// Acknowledged appends are there, refused ones are not, and none is there twice.
fn appends(history: &History, lists: &Lists, wrong: &mut Vec<String>) {
    for append in &history.appends {
        let Append { word, list, outcome, .. } = append;
        match (outcome, count(lists, append)) {
            (Outcome::Done(version), 0) => {
                wrong.push(format!("{word} in {list} was acknowledged at version {version} and is missing"));
            }
            (Outcome::Never, 1..) => wrong.push(format!("{word} in {list} was answered as not written, and is there")),
            (_, 2..) => wrong.push(format!("{word} is in {list} more than once")),
            _ => {}
        }
    }
}

/// What was acknowledged before another one began comes before it.
fn order(history: &History, lists: &Lists, wrong: &mut Vec<String>) {
    let place: HashMap<&str, usize> =
        lists.values().flat_map(|list| list.iter().enumerate().map(|(at, word)| (word.as_str(), at))).collect();
    for first in history.appends.iter().filter(|append| matches!(append.outcome, Outcome::Done(_))) {
        for second in history.appends.iter().filter(|it| it.list == first.list && it.span.from > first.span.to) {
            let places = (place.get(first.word.as_str()), place.get(second.word.as_str()));
            if let (Some(before), Some(after)) = places
                && before > after
            {
                wrong.push(format!("{} was acknowledged before {} began, and comes after it", first.word, second.word));
            }
        }
    }
}

/// A read sees a list as it was at some time, with all that was acknowledged before the read began, and with all that
/// an earlier read saw.
fn reads(history: &History, lists: &Lists, wrong: &mut Vec<String>) {
    let none = Vec::new();
    for read in &history.reads {
        for (name, list) in lists {
            let seen = read.lists.get(name).unwrap_or(&none);
            if !list.starts_with(seen) {
                wrong.push(format!("manager {} told of {name} what it never was: {seen:?}, {list:?}", read.manager));
            }
        }
        let before = |append: &&Append| append.span.to < read.span.from && matches!(append.outcome, Outcome::Done(_));
        for append in history.appends.iter().filter(before) {
            let seen = read.lists.get(&append.list).unwrap_or(&none);
            if !seen.contains(&append.word) {
                wrong.push(format!(
                    "a read at manager {} from {} us on lacks {}, which was acknowledged at {} us",
                    read.manager, read.span.from, append.word, append.span.to
                ));
            }
        }
    }
}

/// A repeated creation is not done again.
fn onces(history: &History, held: &Held, wrong: &mut Vec<String>) {
    for once in &history.onces {
        let is_there = held.contains_key(&once.name);
        let name = &once.name;
        match (&once.created, &once.removed, is_there) {
            (Outcome::Done(_), None | Some(Outcome::Never), false) => {
                wrong.push(format!("{name} was created and acknowledged, and is missing"));
            }
            (Outcome::Never, _, true) => wrong.push(format!("{name} was answered as not created, and is there")),
            (_, Some(Outcome::Done(_)), true) => {
                wrong.push(format!("{name} was removed and acknowledged, and is there: a retry was applied again"));
            }
            _ => {}
        }
        if let (Outcome::Done(first), Some(Outcome::Done(again))) = (&once.created, &once.repeated)
            && first != again
        {
            wrong.push(format!("the creation of {name} was answered with version {first}, its retry with {again}"));
        }
        if once.other_object {
            wrong.push(format!("an answer about {name} named another object"));
        }
    }
}

/// Two writes never get the same version.
fn versions(history: &History, wrong: &mut Vec<String>) {
    let mut taken: BTreeMap<u64, &str> = BTreeMap::new();
    let done = |name, outcome: Option<&Outcome>| match outcome {
        Some(Outcome::Done(version)) => Some((name, *version)),
        _ => None,
    };
    let appends = history.appends.iter().filter_map(|it| done(&it.word, Some(&it.outcome)));
    let created = history.onces.iter().filter_map(|it| done(&it.name, Some(&it.created)));
    let removed = history.onces.iter().filter_map(|it| done(&it.name, it.removed.as_ref()));
    for (name, version) in appends.chain(created).chain(removed) {
        if let Some(other) = taken.insert(version, name) {
            wrong.push(format!("{other} and {name} were both acknowledged at version {version}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Once, Read, Span};

    fn append(word: &str, from: u64, outcome: Outcome) -> Append {
        Append { list: "l".to_owned(), word: word.to_owned(), span: Span { from, to: from + 5 }, outcome }
    }

    fn read(from: u64, seen: &str) -> Read {
        let lists = BTreeMap::from([("l".to_owned(), words(seen))]);
        Read { manager: 1, span: Span { from, to: from + 1 }, lists }
    }

    fn held(names: &[(&str, &str)]) -> Held {
        names.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
    }

    /// What is wrong when the list is like this in the end.
    fn wrong(appends: Vec<Append>, reads: Vec<Read>, list: &str) -> String {
        judge(&History { appends, reads, onces: Vec::new() }, &held(&[("l", list)])).join("; ")
    }

    #[test]
    fn every_rule_can_be_broken() {
        let two = || vec![append("a", 0, Outcome::Done(1)), append("b", 10, Outcome::Done(2))];
        assert_eq!(wrong(two(), vec![read(6, "a"), read(20, "a b")], "a b"), "");
        assert!(wrong(two(), Vec::new(), "b").contains("a in l was acknowledged at version 1 and is missing"));
        assert!(wrong(two(), Vec::new(), "b a").contains("comes after it"));
        assert!(wrong(two(), Vec::new(), "a b a").contains("more than once"));
        assert!(wrong(two(), vec![read(16, "a")], "a b").contains("lacks b"));
        assert!(wrong(two(), vec![read(16, "b")], "a b").contains("never was"));
        let same = vec![append("a", 0, Outcome::Done(1)), append("b", 0, Outcome::Done(1))];
        assert!(wrong(same, Vec::new(), "a b").contains("both acknowledged at version 1"));
        let never = || vec![append("a", 0, Outcome::Never)];
        assert_eq!(wrong(never(), Vec::new(), ""), "");
        assert!(wrong(never(), Vec::new(), "a").contains("answered as not written"));
        for list in ["", "a"] {
            assert_eq!(wrong(vec![append("a", 0, Outcome::Unknown)], Vec::new(), list), "");
        }
    }

    #[test]
    fn a_creation_is_done_once() {
        let once =
            |created, removed, repeated| Once { name: "n".to_owned(), created, removed, repeated, other_object: false };
        let judged = |once: Once, is_there: bool| {
            let names: &[(&str, &str)] = if is_there { &[("n", "")] } else { &[] };
            judge(&History { onces: vec![once], ..History::default() }, &held(names)).join("; ")
        };
        let whole = |again| once(Outcome::Done(1), Some(Outcome::Done(2)), Some(Outcome::Done(again)));
        assert_eq!(judged(whole(1), false), "");
        assert!(judged(whole(1), true).contains("applied again"));
        assert!(judged(whole(3), false).contains("its retry with 3"));
        assert!(judged(once(Outcome::Done(1), None, None), false).contains("is missing"));
        assert!(judged(once(Outcome::Never, None, None), true).contains("is there"));
        for is_there in [false, true] {
            assert_eq!(judged(once(Outcome::Done(1), Some(Outcome::Unknown), None), is_there), "");
        }
    }
}
