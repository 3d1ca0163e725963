//! Platforms of images and the choice among those that an index offers (OCI image index spec, "platform"). Used by the
//! pull engine, archives, and the managers' image resolution. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and a processor architecture, in Go's names, as every image states them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, …
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// The processor variant (`v8`). `None`: any, or not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for, in the names images use.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `self` runs on `host`: `None` not at all; of several that run, the highest is best.
    pub fn fitness(&self, host: &Self) -> Option<u32> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        let level = |variant: &Option<String>| {
            variant.as_ref().and_then(|text| text.trim_start_matches('v').parse::<u32>().ok()).unwrap_or(0)
        };
        let (wanted, offered) = (normal_variant(host), normal_variant(self));
        match (level(&wanted), level(&offered)) {
            // arm64 and amd64 hosts do not tell their exact level: the plain form fits best.
            (0, 0) => Some(100),
            (0, _) => None,
            // An older variant runs on a newer processor, not the other way round.
            (wanted, offered) if offered <= wanted => Some(offered + 1),
            _ => None,
        }
    }
}

/// `arm64/v8` and `amd64/v1` are what the bare names mean.
fn normal_variant(platform: &Platform) -> Option<String> {
    match (platform.architecture.as_str(), platform.variant.as_deref()) {
        ("arm64", Some("v8")) | ("amd64", Some("v1")) | (_, Some("") | None) => None,
        (_, Some(variant)) => Some(variant.to_owned()),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// The position of the entry that fits `host` best; the first of equals. `None` if none fits.
pub fn choose<'a>(offers: impl IntoIterator<Item = Option<&'a Platform>>, host: &Platform) -> Option<usize> {
    offers
        .into_iter()
        .enumerate()
        .filter_map(|(at, offer)| Some((offer?.fitness(host)?, at)))
        .max_by_key(|(fitness, at)| (*fitness, std::cmp::Reverse(*at)))
        .map(|(_, at)| at)
}

/// `linux/amd64, linux/arm64`: for messages. `no platform` when empty.
pub fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform".to_owned();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    fn chosen(offers: &[&str], host: &str) -> Option<usize> {
        let offers: Vec<_> = offers.iter().map(|text| platform(text)).collect();
        choose(offers.iter().map(Some), &platform(host))
    }

    #[test]
    fn best_fit_wins() {
        assert_eq!(chosen(&["linux/arm64", "linux/amd64"], "linux/amd64"), Some(1));
        assert_eq!(chosen(&["linux/arm64/v8"], "linux/arm64"), Some(0));
        assert_eq!(chosen(&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7"), Some(1));
        assert_eq!(chosen(&["linux/arm/v7"], "linux/arm/v6"), None);
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"], "linux/amd64"), Some(1));
        assert_eq!(chosen(&["linux/amd64/v3"], "linux/amd64"), None);
        assert_eq!(chosen(&["windows/amd64"], "linux/amd64"), None);
        assert_eq!(choose([None, None], &platform("linux/amd64")), None);
    }
}
