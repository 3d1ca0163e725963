//! `--network`: the swarm's networks by name, with aliases and addresses; or the host's, its own bridge, or none.

use std::net::IpAddr;

use skep_proto::v1::{NetworkAttachment, NetworkMode};

use super::{ParseError, csv};

/// What the values of `--network` ask for together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Networks {
    /// `host`, `none` or `bridge` (the default). `None`: none of them was named.
    pub(crate) mode: Option<NetworkMode>,
    /// The swarm's networks, in the order given.
    pub(crate) attachments: Vec<NetworkAttachment>,
}

impl Networks {
    /// Reads all values of the flag.
    pub(crate) fn parse(list: &[String]) -> Result<Self, ParseError> {
        let mut networks = Self::default();
        for text in list {
            let attachment = attachment(text)?;
            match predefined(&attachment.name)? {
                None => networks.attachments.push(attachment),
                Some(_) if attachment != named(&attachment.name) => {
                    let message = format!("{} has neither aliases nor addresses of its own", attachment.name);
                    return Err(ParseError::invalid(message));
                }
                Some(mode) if networks.mode.is_some_and(|known| known != mode) => {
                    return Err(ParseError::invalid("host, none and bridge do not go together"));
                }
                Some(mode) => networks.mode = Some(mode),
            }
        }
        if networks.mode.is_some() && !networks.attachments.is_empty() {
            return Err(ParseError::invalid("host, none and bridge do not go together with other networks"));
        }
        Ok(networks)
    }
}

/// What a name stands for that is no network of the swarm's.
pub(crate) fn predefined(name: &str) -> Result<Option<NetworkMode>, ParseError> {
    match name {
        "host" => Ok(Some(NetworkMode::Host)),
        "none" => Ok(Some(NetworkMode::None)),
        "bridge" => Ok(Some(NetworkMode::Default)),
        _ => Ok(None),
    }
}

fn named(name: &str) -> NetworkAttachment {
    NetworkAttachment { name: name.to_owned(), ..NetworkAttachment::default() }
}

/// Reads `front` or `name=front,alias=www,ip=10.0.1.9`.
pub(crate) fn attachment(text: &str) -> Result<NetworkAttachment, ParseError> {
    let missing = || ParseError::invalid("the name of a network is missing");
    if !text.contains('=') {
        return if text.is_empty() { Err(missing()) } else { Ok(named(text)) };
    }
    let mut attachment = NetworkAttachment::default();
    for field in csv::fields(text)? {
        let (key, value) = csv::key_value(&field);
        let value = value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ParseError::invalid(format!("{key:?} needs a value: write {key}=VALUE")))?;
        match key.as_str() {
            "name" if attachment.name.is_empty() => attachment.name = value.to_owned(),
            "name" => return Err(ParseError::invalid("a value names one network: give the flag once for each")),
            "alias" => attachment.aliases.push(value.to_owned()),
            "ip" | "ip6" => attachment.addresses.push(address(&key, value)?),
            "driver-opt" | "gw-priority" | "link-local-ip" | "mac-address" => return Err(ParseError::unsupported(key)),
            _ => {
                let message = format!("{key:?} is not known: use name, alias, ip, ip6");
                return Err(ParseError::invalid(message));
            }
        }
    }
    if attachment.name.is_empty() { Err(missing()) } else { Ok(attachment) }
}

/// `ip` takes both families, as one may write it once for each; `ip6`, which Docker has, IPv6 only.
fn address(key: &str, text: &str) -> Result<String, ParseError> {
    match text.parse::<IpAddr>() {
        Ok(address) if key == "ip" || address.is_ipv6() => Ok(address.to_string()),
        Ok(_) => Err(ParseError::invalid(format!("{text:?} is not an IPv6 address"))),
        Err(_) => Err(ParseError::invalid(format!("{text:?} is not an IP address"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(items: &[&str]) -> Result<Networks, ParseError> {
        Networks::parse(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn modes() {
        assert_eq!(parse(&[]).unwrap(), Networks::default());
        assert_eq!(parse(&["host"]).unwrap().mode, Some(NetworkMode::Host));
        assert_eq!(parse(&["name=none"]).unwrap().mode, Some(NetworkMode::None));
        assert_eq!(parse(&["host", "name=host"]).unwrap().mode, Some(NetworkMode::Host));
        assert_eq!(parse(&["bridge"]).unwrap().mode, Some(NetworkMode::Default));
        for wrong in [
            &["name=host,alias=x"][..],
            &["host", "none"],
            &["host", "front"],
            &["front", "none"],
            &["front", "bridge"],
        ] {
            assert!(matches!(parse(wrong), Err(ParseError::Invalid(_))), "{wrong:?}");
        }
    }

    #[test]
    fn networks_of_the_swarm() {
        let networks = parse(&["front", "name=back,alias=db,alias=store,ip=10.0.1.9,ip6=FD00::1"]).unwrap();
        assert_eq!((networks.mode, networks.attachments.len()), (None, 2));
        assert_eq!(networks.attachments[0], named("front"));
        let back = &networks.attachments[1];
        assert_eq!((back.name.as_str(), back.aliases.join(" ").as_str()), ("back", "db store"));
        assert_eq!(back.addresses, ["10.0.1.9", "fd00::1"]);
        assert_eq!(parse(&["ip=fd00::1,name=x"]).unwrap().attachments[0].addresses, ["fd00::1"]);
    }

    #[test]
    fn mistakes() {
        for wrong in [
            "",
            "name=",
            "alias=x",
            "name=a,name=b",
            "name=a,bogus=1",
            "name=a,alias",
            "name=a,ip=x",
            "name=a,ip6=10.0.0.1",
            "\"name=a",
        ] {
            assert!(matches!(parse(&[wrong]), Err(ParseError::Invalid(_))), "{wrong}");
        }
        assert!(matches!(parse(&["name=a,driver-opt=x=y"]), Err(ParseError::Unsupported(_))));
    }
}
