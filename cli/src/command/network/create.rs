//! `skep network create`: the flags, the spec that they mean, the call.

use clap::{ArgAction, Args};
use skep_proto::v1::{CreateNetworkRequest, NetworkDriver, NetworkSpec};

use crate::client::write;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::parse::{driver_opt, pair, subnets};
use crate::{output, view};

#[derive(Args, Clone, Debug)]
#[command(max_term_width = 120)]
pub(crate) struct CreateArgs {
    /// `overlay` (spans all hosts), `bridge` (each host's own) or `macvlan` (addresses on the network of an interface).
    #[arg(short, long, value_name = "DRIVER", default_value = "overlay")]
    driver: String,
    /// Range of addresses, such as 10.20.0.0/24; one of IPv4 and one of IPv6 [default: from the swarm's pools].
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    subnet: Vec<String>,
    /// Gateway of the subnet that it lies in [default: the subnet's first address].
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Part of a subnet that tasks get addresses from [default: all of it].
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// Address that no task gets, as NAME=ADDRESS.
    #[arg(long, value_name = "NAME=ADDRESS", value_delimiter = ',')]
    aux_address: Vec<String>,
    /// Option of the driver: encrypted=true|false (overlay), keep-source=true|false (with --ingress: tasks see the addresses
    /// of clients), parent=INTERFACE (macvlan), mtu=NUMBER.
    #[arg(short, long, value_name = "OPTION")]
    opt: Vec<String>,
    /// Label, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// No way out of it, and none in but by its tasks.
    #[arg(long)]
    internal: bool,
    /// Let containers that no service made attach.
    #[arg(long)]
    attachable: bool,
    /// Make it the routing mesh's own network; there is one at most.
    #[arg(long)]
    ingress: bool,
    /// Give it an IPv4 subnet. There is no network without one yet.
    #[arg(
        long,
        action = ArgAction::Set,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true"
    )]
    ipv4: bool,
    /// Give it an IPv6 subnet, too.
    #[arg(
        long,
        action = ArgAction::Set,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true"
    )]
    ipv6: bool,
    /// Name of the network.
    #[arg(value_name = "NETWORK")]
    name: String,
}

/// Creates the network and prints its id.
pub(super) async fn run(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let spec = spec(args)?;
    skep_proto::validate::network_spec(&spec)?;
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut networks = client.networks();
        let request = CreateNetworkRequest { spec: Some(spec.clone()), write: Some(options) };
        async move { networks.create(request).await }
    })
    .await?;
    output::data(format!("{}\n", view::id(&answer.id)))
}

/// What the flags mean. What contradicts itself is left to `skep_proto::validate`.
fn spec(args: &CreateArgs) -> Result<NetworkSpec, Failure> {
    if !args.ipv4 {
        return Err(Failure::Unsupported("--ipv4=false: networks without IPv4".to_owned()));
    }
    let given = subnets::Given {
        subnets: &args.subnet,
        gateways: &args.gateway,
        ip_ranges: &args.ip_range,
        aux_addresses: &args.aux_address,
    };
    let mut spec = NetworkSpec {
        name: args.name.clone(),
        labels: pair::labels(&args.label).map_err(|error| error.of("--label"))?,
        options: driver_opt::options(&args.opt).map_err(|error| error.of("--opt"))?,
        internal: args.internal,
        attachable: args.attachable,
        ingress: args.ingress,
        ipv6: args.ipv6,
        subnets: subnets::pair(&given)?,
        ..NetworkSpec::default()
    };
    spec.set_driver(driver(&args.driver)?);
    Ok(spec)
}

fn driver(name: &str) -> Result<NetworkDriver, Failure> {
    match name {
        "overlay" => Ok(NetworkDriver::Overlay),
        "bridge" => Ok(NetworkDriver::Bridge),
        "macvlan" => Ok(NetworkDriver::Macvlan),
        "ipvlan" => Err(Failure::Unsupported("--driver ipvlan".to_owned())),
        "host" | "none" | "null" => {
            let message = format!("only one instance of the {name:?} network is allowed: services use it by its name");
            Err(Failure::Usage(message))
        }
        other => {
            let message =
                format!("invalid value for --driver: {other:?} is not a driver: use overlay, bridge or macvlan");
            Err(Failure::Usage(message))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::exit::Exit;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn create(line: &str) -> Result<NetworkSpec, Failure> {
        let args = Line::try_parse_from(["create"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let spec = spec(&args)?;
        skep_proto::validate::network_spec(&spec)?;
        Ok(spec)
    }

    #[test]
    fn the_shortest_line() {
        let spec = create("front").unwrap();
        assert_eq!(spec, NetworkSpec { name: "front".to_owned(), ..NetworkSpec::default() });
        assert_eq!(spec.driver(), NetworkDriver::Overlay);
    }

    #[test]
    fn every_flag() {
        let spec = create(
            "--driver overlay --subnet 10.9.0.0/16,fd00:9::/64 --gateway 10.9.0.9 --gateway fd00:9::9 \
             --ip-range 10.9.1.0/24 --aux-address nas=10.9.0.2 -o encrypted=false --opt mtu=1400 --label a=b \
             --internal --attachable --ipv6 back",
        )
        .unwrap();
        assert!(spec.internal && spec.attachable && spec.ipv6 && !spec.ingress);
        assert_eq!((spec.name.as_str(), spec.labels["a"].as_str()), ("back", "b"));
        assert_eq!((spec.options["encrypted"].as_str(), spec.options["mtu"].as_str()), ("false", "1400"));
        assert_eq!((spec.subnets[0].gateway.as_str(), spec.subnets[1].gateway.as_str()), ("10.9.0.9", "fd00:9::9"));
        assert_eq!(spec.subnets[0].reserved_addresses["nas"], "10.9.0.2");
        assert!(create("--ingress mesh").unwrap().ingress);
        assert!(
            !create("--ipv4 --ipv6=false v4").unwrap().ipv6 && create("--ipv4=true --ipv6=true both").unwrap().ipv6
        );
        let lan = create("-d macvlan --subnet 10.9.0.0/16 -o parent=eth0 lan").unwrap();
        assert_eq!(lan.driver(), NetworkDriver::Macvlan);
        assert_eq!(create("-d bridge local").unwrap().driver(), NetworkDriver::Bridge);
    }

    #[test]
    fn refusals() {
        for (line, text, exit) in [
            ("host", "predefined", Exit::Usage),
            ("-d bogus x", "--driver", Exit::Usage),
            ("-d host x", "only one instance", Exit::Usage),
            ("-d ipvlan x", "--driver ipvlan", Exit::Unsupported),
            ("-o bogus=1 x", "bogus", Exit::Usage),
            ("-o mtu=9 x", "mtu", Exit::Usage),
            ("--label =x x", "--label", Exit::Usage),
            ("--ingress --internal x", "ingress", Exit::Usage),
            ("--gateway 10.9.0.1 x", "corresponding subnet", Exit::Usage),
            ("--subnet 10.9.0.0/16 --subnet 10.8.0.0/16 x", "at most one IPv4", Exit::Usage),
            ("--subnet 10.9.0.0/31 x", "no room", Exit::Usage),
            ("-d macvlan x", "parent", Exit::Usage),
            ("--ipv4=false --ipv6 x", "--ipv4=false: networks without IPv4", Exit::Unsupported),
        ] {
            let failure = create(line).unwrap_err();
            assert_eq!(failure.exit(), exit, "{line}: {failure}");
            assert!(failure.to_string().contains(text), "{line}: {failure}");
        }
    }
}
