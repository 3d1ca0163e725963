//! Which user namespace a task's containers have: what the node does, and what the service says. Pure.

use skep_proto::v1::{Confinement, ContainerSpec, NetworkMode, TaskTemplate, UserNamespaceMode};
use skep_runtime::{AppArmor, Seccomp, UserNamespace};

use super::spec::SpecError;
use crate::remap::Remap;

/// The word for none, of both kinds of profile.
const UNCONFINED: &str = "unconfined";

/// The namespace, to be kept at `path`; `None`: the host's.
pub(super) fn namespace(
    template: &TaskTemplate,
    remap: Option<&Remap>,
    path: std::path::PathBuf,
) -> Result<Option<UserNamespace>, SpecError> {
    let own = |remap: &Remap| UserNamespace { path, uids: remap.uids.clone(), gids: remap.gids.clone() };
    match (mode(template)?, remap) {
        (UserNamespaceMode::Host, _) | (UserNamespaceMode::Default, None) => Ok(None),
        (UserNamespaceMode::Private, None) => Err(SpecError::NoRemap),
        (_, Some(_)) if template.network_mode() == NetworkMode::Host => Err(SpecError::HostNetwork),
        (_, Some(remap)) => Ok(Some(own(remap))),
    }
}

/// What the containers say; they share one namespace, as they share a network.
fn mode(template: &TaskTemplate) -> Result<UserNamespaceMode, SpecError> {
    let of =
        |container: &ContainerSpec| container.confinement.as_ref().map(Confinement::user_namespace).unwrap_or_default();
    let mut modes = template.containers.iter().map(of);
    let first = modes.next().unwrap_or_default();
    if modes.all(|mode| mode == first) { Ok(first) } else { Err(SpecError::Users) }
}

/// The system calls that a container may make.
pub(super) fn seccomp(container: &ContainerSpec) -> Seccomp {
    match container.confinement.as_ref().map_or("", |confinement| confinement.seccomp.as_str()) {
        "" => Seccomp::Default,
        UNCONFINED => Seccomp::Unconfined,
        profile => Seccomp::Profile(profile.into()),
    }
}

/// Its AppArmor profile.
pub(super) fn apparmor(container: &ContainerSpec) -> AppArmor {
    match container.confinement.as_ref().map_or("", |confinement| confinement.apparmor.as_str()) {
        "" => AppArmor::Default,
        UNCONFINED => AppArmor::Unconfined,
        name => AppArmor::Profile(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_runtime::IdRange;

    use super::*;

    fn template(modes: &[UserNamespaceMode]) -> TaskTemplate {
        let container = |mode: &UserNamespaceMode| ContainerSpec {
            confinement: Some(Confinement { user_namespace: (*mode).into(), ..Confinement::default() }),
            ..ContainerSpec::default()
        };
        TaskTemplate { containers: modes.iter().map(container).collect(), ..TaskTemplate::default() }
    }

    #[test]
    fn the_node_decides_unless_the_service_does() {
        use UserNamespaceMode::{Default as Unsaid, Host, Private};
        let range = vec![IdRange { inside: 0, outside: 100_000, count: 10 }];
        let remap = Remap { uids: range.clone(), gids: range };
        let of = |modes: &[UserNamespaceMode], remap| namespace(&template(modes), remap, "/s/user".into());
        assert_eq!(of(&[Unsaid], None), Ok(None));
        assert_eq!(of(&[Host], Some(&remap)), Ok(None));
        assert_eq!(of(&[Private], None), Err(SpecError::NoRemap));
        for mode in [Unsaid, Private] {
            let users = of(&[mode], Some(&remap)).unwrap().unwrap();
            assert_eq!((users.path, users.uids), ("/s/user".into(), remap.uids.clone()));
        }
        assert_eq!(of(&[Host, Private], Some(&remap)), Err(SpecError::Users));
        let mut host = template(&[Unsaid]);
        host.set_network_mode(NetworkMode::Host);
        assert_eq!(namespace(&host, Some(&remap), "/s/user".into()), Err(SpecError::HostNetwork));
        assert_eq!(namespace(&host, None, "/s/user".into()), Ok(None));
    }

    #[test]
    fn profiles_are_the_default_none_or_the_users() {
        let of = |text: &str| {
            let confinement = Confinement { seccomp: text.into(), apparmor: text.into(), ..Confinement::default() };
            let container = ContainerSpec { confinement: Some(confinement), ..ContainerSpec::default() };
            (seccomp(&container), apparmor(&container))
        };
        assert_eq!(of(""), (Seccomp::Default, AppArmor::Default));
        assert_eq!(of("unconfined"), (Seccomp::Unconfined, AppArmor::Unconfined));
        assert_eq!(of("x"), (Seccomp::Profile("x".into()), AppArmor::Profile("x".into())));
        assert_eq!(seccomp(&ContainerSpec::default()), Seccomp::Default);
    }
}
