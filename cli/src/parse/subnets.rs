//! `--subnet`, `--gateway`, `--ip-range` and `--aux-address` of `network create`: which belong together. As in Docker,
//! each of the latter three goes to the subnet that it lies in.

use std::net::IpAddr;

use skep_proto::cidr::Cidr;
use skep_proto::v1::SubnetSpec;

use super::ParseError;
use crate::failure::Failure;

/// The flags' values.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Given<'a> {
    pub(crate) subnets: &'a [String],
    pub(crate) gateways: &'a [String],
    pub(crate) ip_ranges: &'a [String],
    /// `name=address`
    pub(crate) aux_addresses: &'a [String],
}

/// Pairs them; one entry for each subnet, in their order.
pub(crate) fn pair(given: &Given<'_>) -> Result<Vec<SubnetSpec>, Failure> {
    if given.subnets.len() < given.ip_ranges.len() || given.subnets.len() < given.gateways.len() {
        return Err(Failure::Usage("every ip-range or gateway must have a corresponding subnet".to_owned()));
    }
    let mut subnets: Vec<(Cidr, SubnetSpec)> = Vec::new();
    for text in given.subnets {
        let cidr = range("--subnet", text)?;
        if subnets.iter().any(|(other, _)| other.overlaps(&cidr)) {
            return Err(Failure::Usage("multiple overlapping subnet configuration is not supported".to_owned()));
        }
        subnets.push((cidr, SubnetSpec { subnet: cidr.to_string(), ..SubnetSpec::default() }));
    }
    for text in given.ip_ranges {
        let part = range("--ip-range", text)?;
        let (cidr, spec) = find(&mut subnets, |cidr| cidr.covers(&part), "range", text)?;
        set(&mut spec.ip_range, part.to_string(), "ranges", cidr)?;
    }
    for text in given.gateways {
        let gateway = address("--gateway", text)?;
        let (cidr, spec) = find(&mut subnets, |cidr| cidr.contains(gateway), "gateway", text)?;
        set(&mut spec.gateway, gateway.to_string(), "gateways", cidr)?;
    }
    for text in given.aux_addresses {
        let (name, host) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            ParseError::invalid(format!("{text:?} is not of the form name=address")).of("--aux-address")
        })?;
        let host = address("--aux-address", host)?;
        let (cidr, spec) = find(&mut subnets, |cidr| cidr.contains(host), "aux-address", &host.to_string())?;
        if spec.reserved_addresses.insert(name.to_owned(), host.to_string()).is_some() {
            let message = format!("subnet {cidr} has two addresses named {name:?}");
            return Err(ParseError::invalid(message).of("--aux-address"));
        }
    }
    Ok(subnets.into_iter().map(|(_, spec)| spec).collect())
}

fn range(flag: &str, text: &str) -> Result<Cidr, Failure> {
    text.parse().map_err(|error: skep_proto::cidr::CidrError| ParseError::invalid(error.to_string()).of(flag))
}

fn address(flag: &str, text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| ParseError::invalid(format!("{text:?} is not an IP address")).of(flag))
}

fn find<'a>(
    subnets: &'a mut [(Cidr, SubnetSpec)],
    holds: impl Fn(&Cidr) -> bool,
    what: &str,
    text: &str,
) -> Result<(Cidr, &'a mut SubnetSpec), Failure> {
    let found = subnets.iter_mut().find(|(cidr, _)| holds(cidr));
    found
        .map(|(cidr, spec)| (*cidr, spec))
        .ok_or_else(|| Failure::Usage(format!("no matching subnet for {what} {text}")))
}

fn set(field: &mut String, value: String, what: &str, subnet: Cidr) -> Result<(), Failure> {
    if !field.is_empty() {
        let message = format!("cannot configure multiple {what} ({value}, {field}) on the same subnet ({subnet})");
        return Err(Failure::Usage(message));
    }
    *field = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    fn paired(subnets: &str, gateways: &str, ranges: &str, aux: &str) -> Result<Vec<SubnetSpec>, Failure> {
        let (subnets, gateways, ip_ranges, aux) = (words(subnets), words(gateways), words(ranges), words(aux));
        pair(&Given { subnets: &subnets, gateways: &gateways, ip_ranges: &ip_ranges, aux_addresses: &aux })
    }

    #[test]
    fn each_goes_to_its_subnet() {
        assert_eq!(paired("", "", "", "").unwrap(), []);
        let subnets = paired(
            "10.9.0.0/16 fd00:9::/64",
            "fd00:9::1 10.9.255.254",
            "10.9.1.0/24",
            "router=10.9.0.2 printer=fd00:9::7 nas=10.9.0.3",
        )
        .unwrap();
        let [v4, v6] = subnets.as_slice() else { panic!("{subnets:?}") };
        assert_eq!(
            (v4.subnet.as_str(), v4.gateway.as_str(), v4.ip_range.as_str()),
            ("10.9.0.0/16", "10.9.255.254", "10.9.1.0/24")
        );
        assert_eq!((v6.subnet.as_str(), v6.gateway.as_str(), v6.ip_range.as_str()), ("fd00:9::/64", "fd00:9::1", ""));
        assert_eq!((v4.reserved_addresses.len(), v4.reserved_addresses["nas"].as_str()), (2, "10.9.0.3"));
        assert_eq!(v6.reserved_addresses["printer"], "fd00:9::7");
    }

    #[test]
    fn what_fits_nowhere_is_refused_in_dockers_words() {
        for (subnets, gateways, ranges, aux, message) in [
            ("", "10.9.0.1", "", "", "every ip-range or gateway must have a corresponding subnet"),
            ("", "", "10.9.0.0/24", "", "every ip-range or gateway must have a corresponding subnet"),
            ("10.9.0.0/16 10.9.1.0/24", "", "", "", "multiple overlapping subnet configuration is not supported"),
            ("10.9.0.0/16", "10.8.0.1", "", "", "no matching subnet for gateway 10.8.0.1"),
            ("10.9.0.0/16", "", "10.8.0.0/24", "", "no matching subnet for range 10.8.0.0/24"),
            ("10.9.0.0/16", "", "", "a=10.8.0.1", "no matching subnet for aux-address 10.8.0.1"),
            (
                "10.9.0.0/16 10.8.0.0/16",
                "10.9.0.1 10.9.0.2",
                "",
                "",
                "cannot configure multiple gateways (10.9.0.2, 10.9.0.1) on the same subnet (10.9.0.0/16)",
            ),
            ("10.9.0.0/16", "", "", "a=10.9.0.1 a=10.9.0.2", "--aux-address"),
            ("10.9.0.0/16", "", "", "10.9.0.1", "not of the form name=address"),
            ("10.9.0.1/16", "", "", "", "10.9.0.0/16 is meant"),
            ("x", "", "", "", "--subnet"),
            ("10.9.0.0/16", "x", "", "", "--gateway"),
        ] {
            let failure = paired(subnets, gateways, ranges, aux).unwrap_err();
            assert!(matches!(failure, Failure::Usage(_)), "{failure:?}");
            assert!(failure.to_string().contains(message), "{failure}");
        }
    }

    proptest! {
        /// What one would write, and anything.
        #[test]
        fn never_panics(
            subnets in proptest::collection::vec("[0-9a-f.:]{0,12}/[0-9]{0,3}|[0-9]{1,3}[.]0[.]0[.]0/8", 0..3),
            others in proptest::collection::vec("[0-9a-f.:=/]{0,14}|[0-9]{1,3}[.]0[.]0[.][1-9]", 0..3),
        ) {
            let given = Given { subnets: &subnets, gateways: &others, ip_ranges: &others, aux_addresses: &others };
            let _ = pair(&given);
            let _ = pair(&Given { ip_ranges: &[], ..given });
            let _ = pair(&Given { subnets: &subnets, aux_addresses: &others, ..Given::default() });
        }
    }
}
