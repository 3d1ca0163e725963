//! Who a container runs as: `user[:group]` and further groups, looked up in the text of the image's own /etc/passwd and
//! /etc/group.
//!
//! Used by the monitor for a container's first process and by skep-runtime for commands in it. Pure.

use std::collections::BTreeSet;

/// passwd and group files are read up to here: no real one is larger.
pub const MAX_FILE: u64 = 1 << 20;

/// Ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory; empty where passwd does not know the user.
    pub home: String,
}

/// Adds HOME as login would set it, unless it is there.
pub fn add_home(env: &mut Vec<String>, home: &str) {
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", if home.is_empty() { "/" } else { home }));
    }
}

/// Resolves `user` and `groups` by Docker's rules. The error is a sentence.
pub fn resolve(passwd: &str, group: &str, user: &str, groups: &[String]) -> Result<User, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let by_name = passwd.lines().map(fields).find(|line| line.first() == Some(&name) && line.len() >= 4);
    let entry = by_name.or_else(|| {
        name.parse::<u32>().ok()?;
        passwd.lines().map(fields).find(|line| line.get(2) == Some(&name))
    });
    let uid = match (&entry, name.parse::<u32>()) {
        (Some(line), _) => {
            number(line, 2).ok_or_else(|| format!("user {name:?} has no id in the image's /etc/passwd"))?
        }
        (None, Ok(uid)) => uid,
        (None, Err(_)) => {
            return Err(format!("unable to find user {name}: no matching entries in the image's /etc/passwd"));
        }
    };
    let gid = match group_name {
        Some(group_name) => find_group(group, group_name)?,
        None => entry.as_ref().and_then(|line| number(line, 3)).unwrap_or(0),
    };
    let mut all = BTreeSet::new();
    if group_name.is_none()
        && let Some(login) = entry.as_ref().and_then(|line| line.first())
    {
        all.extend(memberships(group, login));
    }
    for name in groups {
        all.insert(find_group(group, name)?);
    }
    let home = entry.and_then(|line| line.get(5).map(|home| (*home).to_owned())).unwrap_or_default();
    Ok(User { uid, gid, groups: all.into_iter().collect(), home })
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn number(line: &[&str], at: usize) -> Option<u32> {
    line.get(at)?.parse().ok()
}

fn find_group(group: &str, name: &str) -> Result<u32, String> {
    let found = group.lines().map(fields).find(|line| line.first() == Some(&name)).and_then(|line| number(&line, 2));
    found
        .or_else(|| name.parse().ok())
        .ok_or_else(|| format!("unable to find group {name}: no matching entries in the image's /etc/group"))
}

/// Groups that list the user as a member.
fn memberships(group: &str, login: &str) -> Vec<u32> {
    let lines = group.lines().map(fields);
    lines
        .filter(|line| line.get(3).is_some_and(|members| members.split(',').any(|member| member == login)))
        .filter_map(|line| number(&line, 2))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:104:root,www\naudio:x:29:\n";

    fn user(text: &str, groups: &[&str]) -> Result<(u32, u32, Vec<u32>), String> {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        resolve(PASSWD, GROUP, text, &groups).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_and_ids_resolve_as_docker_does() {
        assert_eq!(user("", &[]), Ok((0, 0, vec![104])));
        assert_eq!(user("www", &[]), Ok((33, 34, vec![104])));
        assert_eq!(user("33", &["audio", "7"]), Ok((33, 34, vec![7, 29, 104])));
        assert_eq!(user("www:audio", &[]), Ok((33, 29, vec![])));
        assert_eq!(user("4000:5000", &[]), Ok((4000, 5000, vec![])));
        assert_eq!(user("4000", &[]), Ok((4000, 0, vec![])));
        assert!(user("nobody", &[]).unwrap_err().contains("nobody"));
        assert!(user("www:nogroup", &[]).unwrap_err().contains("nogroup"));
        assert_eq!(resolve(PASSWD, GROUP, "www", &[]).unwrap().home, "/srv");
    }
}
