//! Who may call what: the one table of every method of every service (`TABLE`), and the words of a refusal. Pure.
//!
//! `skep_identity::transport::gated` enforces it before any handler; a test compares it with the services in `v1/*.proto`,
//! so that a method without an entry cannot be built. Handlers check no more than that a caller's *own* data are asked
//! for: the rows say who may ask at all.

use std::fmt;

/// What a caller is at the moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// A process on the daemon's host, by its socket file. The file's mode and group say who can open it; who can has
    /// all of the host and, on a manager, of the swarm.
    Local,
    /// Someone without a certificate: a host that joins. A token is the handler's to check.
    Anonymous,
    /// A node whose certificate says worker.
    Worker,
    /// A node whose certificate says manager, and the state that it is none any more.
    FormerManager,
    /// A node whose certificate says manager. With it anything can be written, by [`Quorum.Submit`](crate::v1): so it may
    /// also do what an admin may.
    Manager,
    /// A person who only looks.
    Viewer,
    /// A person who runs services.
    Operator,
    /// A person who may do everything that managers answer.
    Admin,
}

/// A set of [`Standing`]s.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Callers(u16);

impl Callers {
    const fn of(standings: &[Standing]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < standings.len() {
            bits |= 1 << standings[index] as u16;
            index += 1;
        }
        Self(bits)
    }

    /// Whether this caller may.
    pub const fn has(self, standing: Standing) -> bool {
        self.0 & (1 << standing as u16) != 0
    }
}

use Standing::{Admin, Anonymous, FormerManager, Local, Manager, Operator, Viewer, Worker};

/// Whoever has got as far as a connection: what is public.
const EVERYONE: Callers = Callers::of(&[Local, Anonymous, Worker, FormerManager, Manager, Viewer, Operator, Admin]);
/// Hosts that are not in the swarm yet.
const JOINING: Callers = Callers::of(&[Anonymous]);
/// Nodes, each about itself and its own tasks: the handlers see to that.
const NODES: Callers = Callers::of(&[Worker, FormerManager, Manager]);
/// Managers among themselves.
const MANAGERS: Callers = Callers::of(&[Manager]);
/// Managers among themselves, also one that is to learn that it is none any more.
const SEATED: Callers = Callers::of(&[Manager, FormerManager]);
/// The daemon of one host, by its socket.
const HOST: Callers = Callers::of(&[Local]);
/// Looking: nothing changes, and no secret, token or key is in the answer.
const LOOK: Callers = Callers::of(&[Local, Manager, Viewer, Operator, Admin]);
/// Running services: they, their secrets, configs, networks and images.
const OPERATE: Callers = Callers::of(&[Local, Manager, Operator, Admin]);
/// The swarm itself: nodes, tokens, settings, clients.
const ADMINISTER: Callers = Callers::of(&[Local, Manager, Admin]);

/// The methods of one service.
type Methods = &'static [(&'static str, Callers)];

/// Every service and method of `v1/*.proto`.
const TABLE: &[(&str, Methods)] = &[
    ("CertificateAuthority", &[("GetRoot", EVERYONE), ("Issue", JOINING), ("Renew", NODES)]),
    (
        "Clusters",
        &[
            ("Get", LOOK),
            ("JoinToken", ADMINISTER),
            ("Update", ADMINISTER),
            ("UnlockKey", ADMINISTER),
            ("RotateRoot", ADMINISTER),
            ("DataKey", ADMINISTER),
            ("Doctor", LOOK),
        ],
    ),
    ("Nodes", &[("List", LOOK), ("Get", LOOK), ("Update", ADMINISTER), ("Remove", ADMINISTER)]),
    (
        "Services",
        &[
            ("List", LOOK),
            ("Get", LOOK),
            ("Create", OPERATE),
            ("Update", OPERATE),
            ("Rollback", OPERATE),
            ("History", LOOK),
            ("Scale", OPERATE),
            ("Remove", OPERATE),
        ],
    ),
    ("Tasks", &[("List", LOOK), ("Get", LOOK)]),
    (
        "Networks",
        &[
            ("List", LOOK),
            ("Get", LOOK),
            ("Create", OPERATE),
            ("Remove", OPERATE),
            // It sends packets from nodes.
            ("Doctor", OPERATE),
            ("Mesh", LOOK),
        ],
    ),
    (
        "Secrets",
        &[
            ("List", LOOK),
            ("Get", LOOK),
            ("Create", OPERATE),
            ("Update", OPERATE),
            ("Rotate", OPERATE),
            ("Rollback", OPERATE),
            ("Remove", OPERATE),
        ],
    ),
    (
        "Configs",
        &[
            ("List", LOOK),
            ("Get", LOOK),
            ("Create", OPERATE),
            ("Update", OPERATE),
            ("Rotate", OPERATE),
            ("Rollback", OPERATE),
            ("Remove", OPERATE),
        ],
    ),
    ("ImageNames", &[("List", LOOK), ("Put", OPERATE), ("Remove", OPERATE)]),
    (
        "Clients",
        &[
            ("List", LOOK),
            ("Get", LOOK),
            ("Create", ADMINISTER),
            // Not by its holder: whoever has a stolen key would have it for good.
            ("Renew", ADMINISTER),
            ("Remove", ADMINISTER),
        ],
    ),
    ("Watch", &[("Watch", LOOK)]),
    ("Logs", &[("Read", LOOK)]),
    (
        "Dispatch",
        &[("Session", NODES), ("PublishLogs", NODES), ("PublishNetworkCheck", NODES), ("ImageSources", NODES)],
    ),
    ("Peer", &[("FetchBlob", NODES)]),
    ("Relay", &[("Link", MANAGERS), ("Holders", MANAGERS), ("NodeLogs", MANAGERS), ("NodeCheck", MANAGERS)]),
    (
        "Quorum",
        &[
            // Raft tells by the sender's id whose message counts, and answers one that was left behind.
            ("Step", SEATED),
            ("Submit", MANAGERS),
            ("ReadVersion", MANAGERS),
            // The leader decides who gets in.
            ("Enter", SEATED),
            ("Describe", SEATED),
        ],
    ),
    ("Daemon", &[("Info", HOST), ("SwarmInit", HOST), ("SwarmJoin", HOST), ("SwarmLeave", HOST), ("Unlock", HOST)]),
    (
        "Images",
        &[
            ("List", HOST),
            ("Inspect", HOST),
            ("Pull", HOST),
            ("Load", HOST),
            ("Import", HOST),
            ("Tag", HOST),
            ("Remove", HOST),
            ("Prune", HOST),
        ],
    ),
    // In a process of its own, on a socket of mode 0600 that only the agent opens.
    (
        "Netd",
        &[
            ("State", HOST),
            ("Configure", HOST),
            ("Apply", HOST),
            ("Attach", HOST),
            ("Detach", HOST),
            ("Mesh", HOST),
            ("Check", HOST),
            ("Shutdown", HOST),
        ],
    ),
];

/// The row of one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The service, without its package.
    pub service: &'static str,
    /// The method.
    pub method: &'static str,
    /// Who may call it.
    pub callers: Callers,
}

/// The rule of a request's path, such as `/skep.v1.Nodes/List`. `None`: there is no such method.
pub fn rule(path: &str) -> Option<Rule> {
    let (service, method) = path.strip_prefix("/skep.v1.")?.split_once('/')?;
    let (service, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    let (method, callers) = methods.iter().find(|(name, _)| *name == method)?;
    Some(Rule { service, method, callers: *callers })
}

/// All rows.
pub fn rules() -> impl Iterator<Item = Rule> {
    let rows = |(service, methods): &'static (&'static str, Methods)| {
        methods.iter().map(|(method, callers)| Rule { service, method, callers: *callers })
    };
    TABLE.iter().flat_map(rows)
}

impl Rule {
    /// Why a caller is refused, for a person: who it is (`who`, such as "node 3kd…") and who may.
    pub fn refusal(self, who: &str, standing: Standing) -> String {
        format!("{who} ({standing}) may not call {self}: it is for {}", self.callers)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.method)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "a process on this host",
            Self::Anonymous => "no certificate",
            Self::Worker => "a worker",
            Self::FormerManager => "no manager any more",
            Self::Manager => "a manager",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.has(Anonymous) {
            words.push("hosts that join".to_owned());
        }
        if self.has(Worker) {
            words.push("nodes of the swarm".to_owned());
        } else if self.has(Manager) {
            words.push("managers".to_owned());
        }
        let roles: Vec<String> =
            [Viewer, Operator, Admin].into_iter().filter(|role| self.has(*role)).map(|role| role.to_string()).collect();
        match roles.as_slice() {
            [] => {}
            [.., _] if roles.len() == 3 => words.push("clients of any role".to_owned()),
            roles => words.push(format!("clients with the role {}", roles.join(" or "))),
        }
        if self.has(Local) {
            words.push("the daemon's own socket".to_owned());
        }
        match words.as_slice() {
            [] => f.write_str("nobody"),
            [one] => f.write_str(one),
            [most @ .., last] => write!(f, "{} and {last}", most.join(", ")),
        }
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callers({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers(path: &str) -> Callers {
        rule(path).unwrap_or_else(|| panic!("{path} has no rule")).callers
    }

    #[test]
    fn paths_name_methods() {
        assert_eq!(rule("/skep.v1.Nodes/List").map(|rule| rule.to_string()).as_deref(), Some("Nodes.List"));
        for path in ["", "/", "/skep.v1.Nodes", "/skep.v1.Nodes/", "/skep.v1.Nodes/List/", "/skep.v1./List"] {
            assert!(rule(path).is_none(), "{path}");
        }
        for path in ["/skep.v2.Nodes/List", "skep.v1.Nodes/List", "/skep.v1.nodes/List", "/skep.v1.Nodes/list"] {
            assert!(rule(path).is_none(), "{path}");
        }
    }

    #[test]
    fn rights_grow_from_viewer_to_admin_and_a_worker_has_none_of_them() {
        for rule in rules() {
            let has = |standing| rule.callers.has(standing);
            assert!(!has(Viewer) || has(Operator), "{rule}");
            assert!(!has(Operator) || has(Admin), "{rule}");
            assert!(!has(Admin) || has(Manager) && has(Local), "{rule}");
            assert!(!has(FormerManager) || has(Manager), "{rule}");
            // What people may call, a worker may not, and the other way round; only the root is for all.
            assert!(!(has(Worker) && has(Admin)) || rule.callers == EVERYONE, "{rule}");
        }
        let everyone: Vec<String> =
            rules().filter(|rule| rule.callers == EVERYONE).map(|rule| rule.to_string()).collect();
        assert_eq!(everyone, ["CertificateAuthority.GetRoot"]);
        let anonymous: Vec<String> =
            rules().filter(|rule| rule.callers.has(Anonymous)).map(|rule| rule.to_string()).collect();
        assert_eq!(anonymous, ["CertificateAuthority.GetRoot", "CertificateAuthority.Issue"]);
    }

    #[test]
    fn a_worker_may_do_this_and_nothing_else() {
        let methods: Vec<String> =
            rules().filter(|rule| rule.callers.has(Worker)).map(|rule| rule.to_string()).collect();
        let expected = [
            "CertificateAuthority.GetRoot",
            "CertificateAuthority.Renew",
            "Dispatch.Session",
            "Dispatch.PublishLogs",
            "Dispatch.PublishNetworkCheck",
            "Dispatch.ImageSources",
            "Peer.FetchBlob",
        ];
        assert_eq!(methods, expected);
    }

    #[test]
    fn a_viewer_sees_no_token_and_changes_nothing() {
        let verbs: std::collections::BTreeSet<&str> =
            rules().filter(|rule| rule.callers.has(Viewer)).map(|rule| rule.method).collect();
        let harmless = ["Doctor", "Get", "GetRoot", "History", "List", "Mesh", "Read", "Watch"];
        assert_eq!(verbs.into_iter().collect::<Vec<_>>(), harmless);
        assert!(!callers("/skep.v1.Clusters/JoinToken").has(Operator));
        assert!(!callers("/skep.v1.Nodes/Update").has(Operator));
        assert!(callers("/skep.v1.Secrets/Rotate").has(Operator));
    }

    #[test]
    fn refusals_say_who_and_who_may() {
        let rule = rule("/skep.v1.Services/Create").expect("it is there");
        assert_eq!(
            rule.refusal("client alice", Viewer),
            "client alice (viewer) may not call Services.Create: it is for managers, clients with the role operator or \
             admin and the daemon's own socket"
        );
        assert_eq!(MANAGERS.to_string(), "managers");
        assert_eq!(NODES.to_string(), "nodes of the swarm");
        assert_eq!(LOOK.to_string(), "managers, clients of any role and the daemon's own socket");
    }
}
