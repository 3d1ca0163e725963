//! `--publish`: ports that are reached by the routing mesh (mode ingress, the default) or on the task's node (mode host).

use skep_proto::v1::{NetworkMode, PortSpec, Protocol, PublishMode};

use super::{ParseError, csv};

/// Reads one published port for a service on `network`. What contradicts the service's other flags is left to
/// `skep_proto::validate`.
pub(crate) fn parse(text: &str, network: NetworkMode) -> Result<PortSpec, ParseError> {
    let (mut port, mode) = if text.contains('=') { long(text)? } else { short(text)? };
    if network == NetworkMode::Host && port.published_port == 0 {
        // On the host's network nothing translates: the container's port is the node's port.
        port.published_port = port.target_port;
    }
    port.set_mode(mode);
    Ok(port)
}

/// The port that `--publish-rm` names: `TARGET[/PROTOCOL]`, or any form that `--publish` takes.
pub(crate) fn target(text: &str) -> Result<(u32, Protocol), ParseError> {
    let (port, _) = if text.contains('=') { long(text)? } else { short(text)? };
    Ok((port.target_port, port.protocol()))
}

fn long(text: &str) -> Result<(PortSpec, PublishMode), ParseError> {
    let mut spec = PortSpec::default();
    let mut mode = PublishMode::Ingress;
    for field in csv::fields(text)? {
        let (key, value) = csv::key_value(&field);
        let value = value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ParseError::invalid(format!("{key:?} needs a value")))?;
        match key.as_str() {
            "target" => spec.target_port = port(value)?,
            "published" => spec.published_port = port(value)?,
            "protocol" => spec.set_protocol(protocol(value)?),
            "mode" => {
                mode = match value {
                    "host" => PublishMode::Host,
                    "ingress" => PublishMode::Ingress,
                    _ => {
                        return Err(ParseError::invalid(format!("mode {value:?} is neither host nor ingress")));
                    }
                }
            }
            _ => {
                return Err(ParseError::invalid(format!(
                    "{key:?} is not known: use published, target, protocol, mode"
                )));
            }
        }
    }
    if spec.target_port == 0 {
        return Err(ParseError::invalid("target is required"));
    }
    Ok((spec, mode))
}

/// `[published:]target[/protocol]`, which means mode ingress.
fn short(text: &str) -> Result<(PortSpec, PublishMode), ParseError> {
    let mut spec = PortSpec::default();
    let (ports, name) = text.split_once('/').unwrap_or((text, "tcp"));
    spec.set_protocol(protocol(name)?);
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (Some(published), target),
        None => (None, ports),
    };
    if target.contains(':') {
        return Err(ParseError::unsupported(format!("{text} (an address to publish on)")));
    }
    if let Some(published) = published {
        spec.published_port = port(published)?;
    }
    spec.target_port = port(target)?;
    Ok((spec, PublishMode::Ingress))
}

fn port(text: &str) -> Result<u32, ParseError> {
    if text.contains('-') && text.split('-').all(|end| end.parse::<u16>().is_ok()) {
        return Err(ParseError::unsupported(format!("{text} (a range of ports)")));
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(ParseError::invalid(format!("port {text:?} is not a number from 1 to 65535"))),
        Ok(port) => Ok(port.into()),
    }
}

fn protocol(text: &str) -> Result<Protocol, ParseError> {
    match text.to_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Err(ParseError::unsupported("protocol sctp")),
        _ => Err(ParseError::invalid(format!("protocol {text:?} is neither tcp nor udp"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn host_mode() {
        let port = parse("published=8080,target=8080,protocol=udp,mode=host", NetworkMode::Host).unwrap();
        assert_eq!((port.published_port, port.target_port), (8080, 8080));
        assert_eq!((port.protocol(), port.mode()), (Protocol::Udp, PublishMode::Host));
        assert_eq!(parse("target=80,mode=host", NetworkMode::Host).unwrap().published_port, 80);
    }

    #[test]
    fn mode_ingress() {
        for (text, published, protocol) in [
            ("8080:80", 8080, Protocol::Tcp),
            ("80", 0, Protocol::Tcp),
            ("53:80/udp", 53, Protocol::Udp),
            ("published=8080,target=80", 8080, Protocol::Tcp),
            ("target=80,protocol=udp,mode=ingress", 0, Protocol::Udp),
        ] {
            let port = parse(text, NetworkMode::Default).unwrap();
            assert_eq!((port.published_port, port.target_port), (published, 80), "{text}");
            assert_eq!((port.protocol(), port.mode()), (protocol, PublishMode::Ingress), "{text}");
        }
        let port = parse("published=8080,target=80,mode=host", NetworkMode::Default).unwrap();
        assert_eq!((port.published_port, port.mode()), (8080, PublishMode::Host));
    }

    #[test]
    fn what_is_not_there_yet() {
        for text in ["8000-8010:80", "127.0.0.1:80:80", "80/sctp", "published=8000-8001,target=80"] {
            let result = parse(text, NetworkMode::Default);
            assert!(matches!(result, Err(ParseError::Unsupported(_))), "{text}: {result:?}");
        }
    }

    #[test]
    fn targets() {
        for (text, protocol) in [("80", Protocol::Tcp), ("80/udp", Protocol::Udp), ("8080:80", Protocol::Tcp)] {
            assert_eq!(target(text).unwrap(), (80, protocol));
        }
        assert_eq!(target("published=8080,target=80,mode=host").unwrap(), (80, Protocol::Tcp));
        assert!(target("x").is_err() && target("").is_err());
    }

    #[test]
    fn mistakes() {
        for text in [
            "0",
            "x",
            "80/x",
            "70000",
            "published=80,mode=host",
            "target=80,mode=x",
            "target=,mode=host",
            "target=80,bogus=1",
            "",
        ] {
            assert!(matches!(parse(text, NetworkMode::Host), Err(ParseError::Invalid(_))), "{text}");
        }
    }
}
