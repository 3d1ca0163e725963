//! `--network`: until networks come, the host's or none.

use skep_proto::v1::NetworkMode;

use super::{ParseError, csv};

/// Reads `host`, `none`, `name=host`; any other name is a network that does not exist yet.
pub(crate) fn parse(list: &[String]) -> Result<NetworkMode, ParseError> {
    let mut mode = None;
    for text in list {
        for field in csv::fields(text)? {
            let name = match csv::key_value(&field) {
                (_, None) => field.as_str(),
                (key, Some(name)) if key == "name" => name,
                (key, Some(_)) => return Err(ParseError::unsupported(key)),
            };
            let new = match name {
                "host" => NetworkMode::Host,
                "none" => NetworkMode::None,
                "" => return Err(ParseError::invalid("the name of a network is missing")),
                other => {
                    return Err(ParseError::unsupported(format!("{other} (any network but host and none)")));
                }
            };
            if mode.is_some_and(|mode| mode != new) {
                return Err(ParseError::invalid("host and none do not go together"));
            }
            mode = Some(new);
        }
    }
    Ok(mode.unwrap_or(NetworkMode::None))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(items: &[&str]) -> Result<NetworkMode, ParseError> {
        super::parse(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn modes() {
        assert_eq!(parse(&[]).unwrap(), NetworkMode::None);
        assert_eq!(parse(&["host"]).unwrap(), NetworkMode::Host);
        assert_eq!(parse(&["name=none"]).unwrap(), NetworkMode::None);
        assert!(matches!(parse(&["front"]), Err(ParseError::Unsupported(_))));
        assert!(matches!(parse(&["name=host,alias=x"]), Err(ParseError::Unsupported(_))));
        assert!(matches!(parse(&["host", "none"]), Err(ParseError::Invalid(_))));
        assert!(matches!(parse(&[""]), Err(ParseError::Invalid(_))));
    }
}
