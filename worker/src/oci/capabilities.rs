//! A container's capabilities: the default set, what the service adds, what it drops. Pure.

use skep_runtime::CAPABILITIES as ALL;

/// The set, sorted in the kernel's order. Docker's rule: `ALL` in `add` begins with all, `ALL` in `drop` with none; then
/// single ones are added and dropped. `Err`: the name that is no capability.
pub(super) fn resolve(default: Vec<String>, add: &[String], drop: &[String]) -> Result<Vec<String>, String> {
    let add: Vec<String> = add.iter().map(|name| normal(name)).collect::<Result<_, _>>()?;
    let drop: Vec<String> = drop.iter().map(|name| normal(name)).collect::<Result<_, _>>()?;
    let has_all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let base = match (has_all(&add), has_all(&drop)) {
        (true, _) => ALL.iter().map(|name| (*name).to_owned()).collect(),
        (false, true) => Vec::new(),
        (false, false) => default,
    };
    let wanted = |name: &str| {
        let added = add.iter().any(|added| added == name);
        let dropped = drop.iter().any(|dropped| dropped == name);
        (base.iter().any(|known| known == name) || added) && !dropped
    };
    Ok(ALL.iter().filter(|name| wanted(name)).map(|name| (*name).to_owned()).collect())
}

fn normal(name: &str) -> Result<String, String> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" || ALL.contains(&short) { Ok(short.to_owned()) } else { Err(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn added_dropped_and_all() {
        let default = words("CHOWN KILL");
        let resolve = |add: &str, drop: &str| resolve(default.clone(), &words(add), &words(drop));
        assert_eq!(resolve("", "").unwrap(), words("CHOWN KILL"));
        assert_eq!(resolve("cap_net_admin", "KILL").unwrap(), words("CHOWN NET_ADMIN"));
        assert_eq!(resolve("KILL", "all").unwrap(), words("KILL"));
        assert_eq!(resolve("ALL", "SYS_ADMIN").unwrap().len(), ALL.len() - 1);
        assert_eq!(resolve("CAP_NOPE", ""), Err("CAP_NOPE".to_owned()));
    }
}
