//! `--log-driver` and `--log-opt`: skep writes JSON lines with rotation, and nothing else yet.

use skep_proto::v1::LogSpec;

use super::{ParseError, size};

/// Docker's other drivers.
const OTHER_DRIVERS: [&str; 9] =
    ["none", "local", "syslog", "journald", "gelf", "fluentd", "awslogs", "splunk", "gcplogs"];

/// Checks the driver.
pub(crate) fn driver(name: &str) -> Result<(), ParseError> {
    if name == "json-file" {
        Ok(())
    } else if OTHER_DRIVERS.contains(&name) {
        Err(ParseError::unsupported(name))
    } else {
        Err(ParseError::invalid(format!("{name:?} is not a log driver: use json-file")))
    }
}

/// Reads `max-size=10m` and `max-file=3`. `None`: nothing given.
pub(crate) fn options(list: &[String]) -> Result<Option<LogSpec>, ParseError> {
    let mut spec = LogSpec::default();
    for text in list {
        match text.split_once('=') {
            Some(("max-size", value)) => {
                spec.max_file_bytes = match size::bytes(value)? {
                    0 => return Err(ParseError::invalid("max-size must be more than 0")),
                    bytes => bytes,
                };
            }
            Some(("max-file", value)) => {
                spec.max_files = match value.parse() {
                    Ok(0) | Err(_) => {
                        return Err(ParseError::invalid(format!("max-file {value:?} is not a number from 1 up")));
                    }
                    Ok(files) => files,
                };
            }
            Some((
                key @ ("compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode"
                | "max-buffer-size"),
                _,
            )) => {
                return Err(ParseError::unsupported(key));
            }
            _ => {
                return Err(ParseError::invalid(format!(
                    "{text:?} is not known: use max-size=SIZE and max-file=NUMBER"
                )));
            }
        }
    }
    Ok((!list.is_empty()).then_some(spec))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn rotation() {
        let spec = options(&list(&["max-size=5m", "max-file=2"])).unwrap().unwrap();
        assert_eq!((spec.max_file_bytes, spec.max_files), (5 << 20, 2));
        assert_eq!(options(&[]).unwrap(), None);
        for wrong in ["max-size=x", "max-file=0", "max-file=x", "max-size=0", "bogus=1", "max-size"] {
            assert!(matches!(options(&list(&[wrong])), Err(ParseError::Invalid(_))), "{wrong}");
        }
        assert!(matches!(options(&list(&["tag=x"])), Err(ParseError::Unsupported(_))));
    }

    #[test]
    fn drivers() {
        assert!(driver("json-file").is_ok());
        assert!(matches!(driver("syslog"), Err(ParseError::Unsupported(_))));
        assert!(matches!(driver("bogus"), Err(ParseError::Invalid(_))));
    }
}
