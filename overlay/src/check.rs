//! What is wrong with this host's networks. Pure rules over facts, and packets to other hosts ([`probe`]).
//!
//! Used by [`crate::netd`], which gathers the facts when it is asked for a check, and by nobody else. Nothing here changes
//! anything: what netd can repair it repairs when tables come. Findings speak to a person: what is wrong, what to do.

pub mod devices;
pub mod paths;
pub mod probe;
pub mod rules;
pub mod settings;

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{CheckArea, CheckSeverity, NetworkFinding};

/// A finding about this host, whose id the caller fills in.
pub fn finding(area: CheckArea, severity: CheckSeverity, problem: String, advice: String) -> NetworkFinding {
    NetworkFinding { severity: severity.into(), area: area.into(), problem, advice, ..NetworkFinding::default() }
}

/// Something that does not work.
pub fn error(area: CheckArea, problem: impl Into<String>, advice: impl Into<String>) -> NetworkFinding {
    finding(area, CheckSeverity::Error, problem.into(), advice.into())
}

/// Something that is not as it should be.
pub fn warning(area: CheckArea, problem: impl Into<String>, advice: impl Into<String>) -> NetworkFinding {
    finding(area, CheckSeverity::Warning, problem.into(), advice.into())
}

/// What a finding is about.
pub trait About {
    /// A network.
    #[must_use]
    fn of_network(self, network: NetworkId) -> Self;
    /// Another host.
    #[must_use]
    fn of_peer(self, peer: NodeId) -> Self;
}

impl About for NetworkFinding {
    fn of_network(self, network: NetworkId) -> Self {
        Self { network_id: network.to_vec(), ..self }
    }

    fn of_peer(self, peer: NodeId) -> Self {
        Self { peer_id: peer.to_vec(), ..self }
    }
}

/// "a", "a and b", "a, b and 3 more".
pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    /// More help nobody.
    const NAMED: usize = 3;
    let all: Vec<&str> = names.into_iter().collect();
    match all.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [before @ .., last] if all.len() <= NAMED => format!("{} and {last}", before.join(", ")),
        _ => format!("{} and {} more", all[..NAMED - 1].join(", "), all.len() + 1 - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn some_names() {
        assert_eq!(names([]), "");
        assert_eq!(names(["a"]), "a");
        assert_eq!(names(["a", "b", "c"]), "a, b and c");
        assert_eq!(names(["a", "b", "c", "d"]), "a, b and 2 more");
    }
}
