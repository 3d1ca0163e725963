//! What the tests build on: a network (a bridge in a namespace) and sandboxes on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use skep_netlink::link::{Bridge, LinkChange, LinkKind, NewLink};
use skep_netlink::nft::Nft;
use skep_netlink::route::{Route, Target};
use skep_netlink::{Changes, Inside, Namespace, NetlinkError, Prefix, Rtnetlink};

/// Whether the test can run. Says so if not.
pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        #[allow(clippy::print_stdout)]
        {
            println!("skipped: needs root");
        }
    }
    root
}

/// What a program prints, run in a namespace.
pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let path = format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
    let output = Command::new("nsenter").arg(path).args(command.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An error's whole chain.
pub(crate) fn text(error: &NetlinkError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// A namespace with what was opened in it.
pub(crate) struct Place {
    pub(crate) namespace: Namespace,
    pub(crate) rtnetlink: Rtnetlink,
    pub(crate) nft: Nft,
}

impl Place {
    pub(crate) fn new() -> Self {
        let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.rtnetlink()?, inside.nft()?));
        let (namespace, (rtnetlink, nft)) = Namespace::anonymous(open).unwrap();
        Self { namespace, rtnetlink, nft }
    }

    /// Does something in it, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, visit: impl FnOnce(&Inside) -> T + Send) -> T {
        self.namespace.enter(|inside| Ok::<_, NetlinkError>(visit(inside))).unwrap()
    }

    /// Waits until a bridge forwards through a port.
    pub(crate) fn wait_for(&self, port: &str) {
        let forwards = || self.rtnetlink.link(port).unwrap().unwrap().forwarding;
        wait(forwards, &format!("forwarding through {port}"));
    }

    /// Waits until packets to an address are taken as this place's own.
    fn wait_for_address(&self, address: IpAddr) {
        let own = Route::new(Prefix::host(address), Target::Local);
        let is_own = |route: &Route| (route.destination, route.target) == (own.destination, own.target);
        wait(|| self.rtnetlink.routes().unwrap().iter().any(is_own), &format!("a route to {address} itself"));
    }

    pub(crate) fn ruleset(&self) -> String {
        run(&self.namespace, "nft list ruleset")
    }
}

/// Waits for a condition.
fn wait(mut condition: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::yield_now();
    }
}

/// A bridge, number 2 in its namespace.
pub(crate) struct Network {
    pub(crate) place: Place,
    sandboxes: std::cell::Cell<u32>,
}

pub(crate) const BRIDGE: u32 = 2;

impl Network {
    pub(crate) fn new() -> Self {
        let place = Place::new();
        let mut changes = Changes::new();
        let bridge = LinkKind::Bridge(Bridge::default());
        changes.add_link(&NewLink { index: Some(BRIDGE), up: true, ..NewLink::new("br0", bridge) });
        for gateway in ["10.5.0.1/16", "fd05::1/64"] {
            changes.add_address(BRIDGE, gateway.parse().unwrap());
        }
        place.rtnetlink.apply(&changes).unwrap();
        Self { place, sandboxes: std::cell::Cell::new(0) }
    }

    /// A sandbox at 10.5.1.n and fd05::1:n, its `eth0` a port of the bridge.
    pub(crate) fn sandbox(&self) -> (Place, IpAddr, IpAddr) {
        let number = self.sandboxes.get() + 1;
        self.sandboxes.set(number);
        self.sandbox_at(number)
    }

    /// The sandbox of a number, which no other one has.
    pub(crate) fn sandbox_at(&self, number: u32) -> (Place, IpAddr, IpAddr) {
        let sandbox = Place::new();
        self.plug(&sandbox, number);
        let (v4, v6) = addresses(number);
        sandbox.wait_for_address(v6);
        (sandbox, v4, v6)
    }

    fn plug(&self, sandbox: &Place, number: u32) {
        let peer = NewLink { namespace: Some(sandbox.namespace.as_fd()), ..NewLink::new("eth0", LinkKind::Peer) };
        let veth = NewLink {
            master: Some(BRIDGE),
            up: true,
            ..NewLink::new(format!("veth{number}"), LinkKind::Veth(Box::new(peer)))
        };
        let mut changes = Changes::new();
        changes.add_link(&veth);
        self.place.rtnetlink.apply(&changes).unwrap();
        let (v4, v6) = addresses(number);
        let mut changes = Changes::new();
        changes.change_link(2, &LinkChange { up: Some(true), ..LinkChange::default() });
        changes.add_address(2, Prefix::new(v4, 16).unwrap());
        changes.add_address(2, Prefix::new(v6, 64).unwrap());
        changes.add_route(&Route::gateway(Prefix::DEFAULT_V4, "10.5.0.1".parse().unwrap()));
        changes.add_route(&Route::gateway(Prefix::DEFAULT_V6, "fd05::1".parse().unwrap()));
        sandbox.rtnetlink.apply(&changes).unwrap();
    }
}

fn addresses(number: u32) -> (IpAddr, IpAddr) {
    let v4 = Ipv4Addr::from(0x0a05_0100 + number);
    let v6 = Ipv6Addr::from(0xfd05_0000_0000_0000_0000_0000_0001_0000 + u128::from(number));
    (v4.into(), v6.into())
}

/// Gives a host a leg (`eth1`, 10.6.0.1 and fd06::1) in a network of another namespace, where a client is 10.6.0.2 and
/// fd06::2.
pub(crate) fn join(host: &Place, outer: &Place, client: &Place) {
    let peer = NewLink { namespace: Some(host.namespace.as_fd()), ..NewLink::new("eth1", LinkKind::Peer) };
    let leg = LinkKind::Veth(Box::new(peer));
    let mut changes = Changes::new();
    changes.add_link(&NewLink { master: Some(BRIDGE), up: true, ..NewLink::new("leg", leg) });
    outer.rtnetlink.apply(&changes).unwrap();
    let device = host.rtnetlink.link("eth1").unwrap().unwrap().index;
    for (place, device, number) in [(host, device, 1), (client, 2, 2)] {
        let mut changes = Changes::new();
        changes.change_link(device, &LinkChange { up: Some(true), ..LinkChange::default() });
        changes.add_address(device, format!("10.6.0.{number}/24").parse().unwrap());
        changes.add_address(device, format!("fd06::{number}/64").parse().unwrap());
        place.rtnetlink.apply(&changes).unwrap();
    }
    host.wait_for_address("fd06::1".parse().unwrap());
    client.wait_for_address("fd06::2".parse().unwrap());
}

/// Without indentation, which is nft's taste.
pub(crate) fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}
