//! sysctls that networks need.

use skep_netlink::sysctl::Sysctl;
use skep_proto::v1::{CheckArea, NetworkFinding};

use super::{error, warning};

/// How full the host's table of connections may be, in percent.
const FULL: u64 = 90;

/// A sysctl as it is, and as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Which.
    pub sysctl: Sysctl,
    /// Its value. `None`: this kernel does not have it.
    pub value: Option<String>,
    /// What it should be.
    pub wanted: &'static str,
    /// Why that matters: completes "without that …".
    pub reason: &'static str,
}

/// Those of the host's own namespace, where a network with a way out is there.
pub fn of_host(settings: &[Setting]) -> Vec<NetworkFinding> {
    let wrong = |setting: &Setting| {
        let (value, sysctl) = (setting.value.as_ref()?, setting.sysctl.to_string().replace('/', "."));
        let problem = format!("{sysctl} of this host is {value}: {}", setting.reason);
        let advice =
            format!("set it to {} (`sysctl -w {sysctl}={}`), and look what changes it", setting.wanted, setting.wanted);
        (value != setting.wanted).then(|| error(CheckArea::Settings, problem, advice))
    };
    settings.iter().filter_map(wrong).collect()
}

/// Those of the namespace of a network.
pub fn of_network(name: &str, dir: &str, settings: &[Setting]) -> Vec<NetworkFinding> {
    let wrong = |setting: &Setting| {
        let (value, sysctl) = (setting.value.as_ref()?, setting.sysctl.to_string().replace('/', "."));
        let problem = format!("{sysctl} of network {name} on this host is {value}: {}", setting.reason);
        let wanted = setting.wanted;
        let advice =
            format!("set it back (`nsenter --net={dir}/net sysctl -w {sysctl}={wanted}`), and look what changes it");
        (value != setting.wanted).then(|| error(CheckArea::Settings, problem, advice))
    };
    settings.iter().filter_map(wrong).collect()
}

/// The host's table of connections, which ways out and published ports need.
pub fn connections(count: u64, most: u64) -> Option<NetworkFinding> {
    (most > 0 && count * 100 >= most * FULL).then(|| {
        let problem = format!("this host follows {count} connections, and {most} at most: new ones will be lost");
        let advice = "raise net.netfilter.nf_conntrack_max, or find out who opens so many";
        warning(CheckArea::Settings, problem, advice)
    })
}

#[cfg(test)]
mod tests {
    use skep_netlink::sysctl::Scope;

    use super::*;

    #[test]
    fn values_that_differ() {
        let setting = |value: Option<&str>| Setting {
            sysctl: Sysctl::RpFilter(Scope::All),
            value: value.map(str::to_owned),
            wanted: "0",
            reason: "packets are lost",
        };
        assert!(of_network("a", "/n", &[setting(None), setting(Some("0"))]).is_empty());
        let found = of_network("a", "/n", &[setting(Some("1"))]);
        assert_eq!(found[0].problem, "net.ipv4.conf.all.rp_filter of network a on this host is 1: packets are lost");
        assert!(found[0].advice.contains("nsenter --net=/n/net sysctl -w net.ipv4.conf.all.rp_filter=0"));
        assert!(of_host(&[setting(Some("2"))])[0].advice.starts_with("set it to 0 (`sysctl -w net."));
        assert!(of_host(&[setting(Some("0"))]).is_empty());
    }

    #[test]
    fn a_full_table_of_connections() {
        assert_eq!(connections(89, 100), None);
        assert!(connections(90, 100).is_some_and(|finding| finding.problem.contains("90 connections")));
        assert_eq!(connections(0, 0), None);
    }
}
