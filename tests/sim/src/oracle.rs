//! Judges what clients saw against what the managers hold in the end. Pure.
//!
//! A recovery from a lost quorum parts time in two. What was acknowledged before it may be missing afterwards if, and only
//! if, it was not on the disk of the manager that recovered; what is kept then stays. Before it the usual rules hold among
//! the clients.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Append, Held, History, Micros, Once, Outcome, Read, Recovery, words};

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

fn is_done(append: &Append) -> bool {
    matches!(append.outcome, Outcome::Done(_))
}

impl Recovery {
    fn keeps(&self, append: &Append) -> bool {
        self.kept.get(&append.list).is_some_and(|list| words(list).contains(&append.word))
    }
}

impl History {
    /// Whether something that ended, or was answered, at this time was before the recovery, if there was one.
    fn before(&self, at: Micros) -> Option<&Recovery> {
        self.recovery.as_ref().filter(|recovery| at < recovery.at)
    }

    /// Whether an acknowledged append was known to lost managers only.
    fn is_lost(&self, append: &Append) -> bool {
        self.before(append.span.to).is_some_and(|recovery| !recovery.keeps(append))
    }
}

/// Acknowledged appends are there, refused ones are not, and none is there twice.
fn appends(history: &History, lists: &Lists, wrong: &mut Vec<String>) {
    for append in &history.appends {
        let Append { word, list, outcome, .. } = append;
        match (outcome, count(lists, append)) {
            (Outcome::Done(version), 0) if !history.is_lost(append) => {
                wrong.push(format!("{word} in {list} was acknowledged at version {version} and is missing"));
            }
            (Outcome::Done(_), 1..) if history.is_lost(append) => {
                wrong.push(format!("{word} in {list} was lost with the managers that had it, and is there"));
            }
            // One that was refused, as its entry was cut off, may be on a disk that was not told yet.
            (Outcome::Never, 1..) if !history.before(append.span.from).is_some_and(|it| it.keeps(append)) => {
                wrong.push(format!("{word} in {list} was answered as not written, and is there"));
            }
            (_, 2..) => wrong.push(format!("{word} is in {list} more than once")),
            _ => {}
        }
    }
}

/// What was acknowledged before another one began comes before it.
fn order(history: &History, lists: &Lists, wrong: &mut Vec<String>) {
    let place: HashMap<&str, usize> =
        lists.values().flat_map(|list| list.iter().enumerate().map(|(at, word)| (word.as_str(), at))).collect();
    for first in history.appends.iter().filter(|append| is_done(append)) {
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
    let truth_before = before_recovery(history);
    for read in &history.reads {
        let is_early = history.before(read.span.from).is_some();
        for (name, list) in if is_early { &truth_before } else { lists } {
            let seen = read.lists.get(name).unwrap_or(&none);
            if !list.starts_with(seen) {
                wrong.push(format!("manager {} told of {name} what it never was: {seen:?}, {list:?}", read.manager));
            }
        }
        let earlier = |append: &&Append| append.span.to < read.span.from && is_done(append);
        for append in history.appends.iter().filter(earlier).filter(|it| is_early || !history.is_lost(it)) {
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

/// The longest that anybody saw of each list before the recovery.
fn before_recovery(history: &History) -> Lists {
    let mut longest = Lists::new();
    for Read { lists, .. } in history.reads.iter().filter(|read| history.before(read.span.from).is_some()) {
        for (name, list) in lists {
            let known = longest.entry(name.clone()).or_default();
            if known.len() < list.len() {
                known.clone_from(list);
            }
        }
    }
    longest
}

/// A repeated creation is not done again.
fn onces(history: &History, held: &Held, wrong: &mut Vec<String>) {
    for once in &history.onces {
        let is_there = held.contains_key(&once.name);
        let name = &once.name;
        if once.other_object {
            wrong.push(format!("an answer about {name} named another object"));
        }
        if let Some(recovery) = history.before(once.created_at) {
            once_before(once, recovery, is_there, wrong);
            continue;
        }
        match (&once.created, &once.removed, is_there) {
            (Outcome::Done(_), None | Some(Outcome::Never), false) => {
                wrong.push(format!("{name} was created and acknowledged, and is missing"));
            }
            (Outcome::Never, _, true) if !history.recovery.as_ref().is_some_and(|it| it.kept.contains_key(name)) => {
                wrong.push(format!("{name} was answered as not created, and is there"));
            }
            (_, Some(Outcome::Done(_)), true) => {
                wrong.push(format!("{name} was removed and acknowledged, and is there: a retry was applied again"));
            }
            _ => {}
        }
        repeated(once, wrong);
    }
}

fn repeated(once: &Once, wrong: &mut Vec<String>) {
    if let (Outcome::Done(first), Some(Outcome::Done(again))) = (&once.created, &once.repeated)
        && first != again
    {
        let name = &once.name;
        wrong.push(format!("the creation of {name} was answered with version {first}, its retry with {again}"));
    }
}

/// Of one whose creation was answered before a recovery: what was kept stays, and what was lost does not come back.
fn once_before(once: &Once, recovery: &Recovery, is_there: bool, wrong: &mut Vec<String>) {
    let name = &once.name;
    let (was_kept, is_known) = (recovery.kept.contains_key(name), recovery.requests.contains(&once.request));
    if once.ended_at < recovery.at {
        if was_kept != is_there {
            wrong.push(format!("{name} was kept by the recovery: {was_kept}; it is there in the end: {is_there}"));
        }
        repeated(once, wrong);
        return;
    }
    if is_known {
        // Its removal may have been lost, or is still to come; its creation is not done again.
        repeated(once, wrong);
        if !was_kept && is_there {
            wrong.push(format!("{name} was removed, and is there: a retry was applied again after the recovery"));
        }
    }
}

/// Two writes never get the same version, but those that were lost.
fn versions(history: &History, wrong: &mut Vec<String>) {
    let mut taken: BTreeMap<(bool, u64), &str> = BTreeMap::new();
    let done = |name, at, outcome: Option<&Outcome>| match outcome {
        Some(Outcome::Done(version)) => Some((name, (history.before(at).is_some(), *version))),
        _ => None,
    };
    let appends = history.appends.iter().filter_map(|it| done(&it.word, it.span.to, Some(&it.outcome)));
    let created = history.onces.iter().filter_map(|it| done(&it.name, it.created_at, Some(&it.created)));
    let removed = history.onces.iter().filter_map(|it| done(&it.name, it.ended_at, it.removed.as_ref()));
    for (name, (early, version)) in appends.chain(created).chain(removed) {
        if let Some(other) = taken.insert((early, version), name) {
            wrong.push(format!("{other} and {name} were both acknowledged at version {version}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Span;

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
        judge(&History { appends, reads, ..History::default() }, &held(&[("l", list)])).join("; ")
    }

    /// The same with a recovery at 100 that kept `kept`.
    fn wrong_after(appends: Vec<Append>, reads: Vec<Read>, kept: &str, list: &str) -> String {
        let recovery = Some(Recovery { at: 100, kept: held(&[("l", kept)]), requests: BTreeSet::new() });
        judge(&History { appends, reads, recovery, ..History::default() }, &held(&[("l", list)])).join("; ")
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
    fn a_recovery_loses_what_lost_managers_alone_had_and_nothing_else() {
        let all = || {
            vec![
                append("a", 0, Outcome::Done(1)),
                append("b", 10, Outcome::Done(2)),
                append("c", 200, Outcome::Done(2)),
            ]
        };
        assert_eq!(wrong_after(all(), vec![read(20, "a b"), read(110, "a"), read(300, "a c")], "a", "a c"), "");
        assert!(wrong_after(all(), Vec::new(), "a b", "a c").contains("b in l was acknowledged at version 2"));
        assert!(wrong_after(all(), Vec::new(), "a", "a b c").contains("b in l was lost"));
        assert!(wrong_after(all(), Vec::new(), "a", "a").contains("c in l was acknowledged"));
        assert!(wrong_after(all(), vec![read(20, "a")], "a", "a c").contains("lacks b"));
        assert!(wrong_after(all(), vec![read(20, "a b"), read(30, "b")], "a", "a c").contains("never was"));
        assert!(wrong_after(all(), vec![read(110, "")], "a", "a c").contains("lacks a"));
        let refused = || vec![append("a", 0, Outcome::Never)];
        assert_eq!(wrong_after(refused(), Vec::new(), "a", "a"), "");
        assert!(wrong_after(refused(), Vec::new(), "", "a").contains("answered as not written"));
    }

    #[test]
    fn a_recovery_keeps_what_was_created_and_does_not_do_it_again() {
        let judged = |created_at, ended_at, kept: bool, known: bool, is_there: bool| {
            let names = |is: bool| if is { held(&[("n", "")]) } else { Held::new() };
            let requests = known.then_some(7).into_iter().collect();
            let recovery = Some(Recovery { at: 100, kept: names(kept), requests });
            let once = Once {
                name: "n".to_owned(),
                request: 7,
                created: Outcome::Done(1),
                created_at,
                ended_at,
                removed: Some(Outcome::Done(2)),
                repeated: Some(Outcome::Done(1)),
                other_object: false,
            };
            judge(&History { onces: vec![once], recovery, ..History::default() }, &names(is_there)).join("; ")
        };
        assert_eq!(judged(10, 20, true, true, true), "");
        assert_eq!(judged(10, 20, false, false, false), "");
        assert!(judged(10, 20, true, true, false).contains("kept by the recovery: true"));
        assert!(judged(10, 20, false, true, true).contains("kept by the recovery: false"));
        assert!(judged(10, 200, false, true, true).contains("applied again after the recovery"));
        assert_eq!(judged(10, 200, false, false, true), "");
        assert!(judged(110, 200, false, false, true).contains("a retry was applied again"));
    }

    #[test]
    fn a_creation_is_done_once() {
        let once = |created, removed, repeated| Once {
            name: "n".to_owned(),
            request: 7,
            created,
            created_at: 1,
            ended_at: 3,
            removed,
            repeated,
            other_object: false,
        };
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
