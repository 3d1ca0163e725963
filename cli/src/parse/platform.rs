//! `--platform os[/arch[/variant]]`.

use skep_proto::v1::Platform;

use super::ParseError;

/// Reads a platform; parts that are left out match any.
pub(crate) fn parse(text: &str) -> Result<Platform, ParseError> {
    let mut parts = text.split('/');
    let platform = Platform {
        os: parts.next().unwrap_or_default().to_lowercase(),
        architecture: parts.next().unwrap_or_default().to_lowercase(),
        variant: parts.next().unwrap_or_default().to_lowercase(),
    };
    let well_formed = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if platform.os.is_empty()
        || parts.next().is_some()
        || text.ends_with('/')
        || ![&platform.os, &platform.architecture, &platform.variant].iter().all(|part| well_formed(part))
    {
        return Err(ParseError::invalid(format!(
            "{text:?} is not a platform: write it like linux/amd64 or linux/arm/v7"
        )));
    }
    Ok(platform)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms() {
        let platform = parse("linux/arm/v7").unwrap();
        assert_eq!(
            (platform.os.as_str(), platform.architecture.as_str(), platform.variant.as_str()),
            ("linux", "arm", "v7")
        );
        assert_eq!(parse("Linux").unwrap().os, "linux");
        for wrong in ["", "/", "linux/", "a/b/c/d", "lin ux"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
