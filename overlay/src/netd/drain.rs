//! Makes connection tracking forget what leads to nobody any more, on a thread of its own: it has the kernel look through its
//! one table of all namespaces, once for each namespace that has connections, and no table waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use skep_netlink::conntrack::Filter;
use skep_netlink::nft::Nft;

use super::{Netd, text};
use crate::host::{PublishError, Published, Taken};
use crate::network::LiveNetwork;
use crate::plan::ingress::Port;
use crate::plan::out;

/// What comes within this time is done at once: tables change in bursts.
const GATHER: Duration = Duration::from_millis(20);

/// Where connections are tracked, and which of them end.
type Work = (Vec<Arc<Nft>>, Vec<Filter>);

/// The thread, by its queue. It ends with this.
pub(super) struct Drain(Sender<Work>);

impl Drain {
    /// Starts it.
    ///
    /// # Errors
    /// Where the process can have no more threads.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name("drain".to_owned()).spawn(move || run(&receiver))?;
        Ok(Self(sender))
    }

    /// Has connections that match any of the filters forgotten in these namespaces, soon.
    pub(super) fn forget(&self, places: Vec<Arc<Nft>>, filters: Vec<Filter>) {
        if !places.is_empty() && !filters.is_empty() {
            // The other end lives as long as this one.
            let _ = self.0.send((places, filters));
        }
    }
}

impl Netd {
    /// Publishes ports on the host ([`crate::host::Host::publish`]).
    pub(super) fn publish(
        &self,
        put: &[(Published, u16)],
        remove: &[(Published, u16)],
        taken: Taken,
    ) -> Result<(), PublishError> {
        let ended = self.host.publish(put, remove, taken)?;
        self.drain.forget(vec![Arc::clone(self.host.nft())], ended);
        Ok(())
    }

    /// Tries ports again that processes of the host had.
    pub(super) fn publish_contested(&self) {
        for (ports, taken) in self.host.contested() {
            match self.host.publish_again(&ports, taken) {
                Ok(ended) => self.drain.forget(vec![Arc::clone(self.host.nft())], ended),
                Err(error) => tracing::warn!("{}", text(&error)),
            }
        }
    }

    /// Ends what is left of connections to ports of mode host whose task is gone.
    pub(super) fn end_host_ports(&self, live: &LiveNetwork, index: u16, ports: &[(Port, IpAddr)]) {
        let from = |address: IpAddr| Filter { reply_source: Some(address), ..Filter::default() };
        self.drain.forget(vec![Arc::clone(live.nft())], ports.iter().map(|(_, address)| from(*address)).collect());
        let on_host = |port: &Port, address: &IpAddr| Filter {
            protocol: Some(port.transport.number()),
            destination_port: Some(port.published),
            ..from(out::inner(index, address.is_ipv6()))
        };
        let ended = ports.iter().map(|(port, address)| on_host(port, address)).collect();
        self.drain.forget(vec![Arc::clone(self.host.nft())], ended);
    }
}

fn run(queue: &Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let deadline = Instant::now() + GATHER;
        let mut work = vec![first];
        let more = loop {
            match queue.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(next) => work.push(next),
                Err(RecvTimeoutError::Timeout) => break true,
                Err(RecvTimeoutError::Disconnected) => break false,
            }
        };
        work_off(work);
        if !more {
            return;
        }
    }
}

fn work_off(work: Vec<Work>) {
    let mut by_place: BTreeMap<*const Nft, (Arc<Nft>, BTreeSet<Filter>)> = BTreeMap::new();
    for (places, filters) in work {
        for place in places {
            let (_, wanted) = by_place.entry(Arc::as_ptr(&place)).or_insert_with(|| (place, BTreeSet::new()));
            wanted.extend(&filters);
        }
    }
    for (place, filters) in by_place.into_values() {
        let filters: Vec<Filter> = filters.into_iter().collect();
        if let Err(error) = place.conntrack().forget(&filters) {
            // They end by themselves, only later.
            tracing::warn!("{}", text(&error));
        }
    }
}
