//! The name server of sandboxes: what answers at 127.0.0.11 in each of them.
//!
//! Used by netd, which binds the sockets inside each sandbox's namespace and keeps the rows of each network up to date.
//! One process serves all sandboxes of a host; the rows of a network are shared by the sandboxes on it.
//!
//! ```no_run
//! # use std::net::{TcpListener, UdpSocket};
//! # use skep_dns::{Endpoint, EndpointId, Network, Server, Service, ServiceId, Upstream, View};
//! # async fn example(udp: UdpSocket, tcp: TcpListener) -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::new(tokio::runtime::Handle::current(), "/etc/resolv.conf".into());
//!
//! // For each network with a sandbox on this host, once: kept up to date by the managers' table.
//! let network = Network::new("backend", &[("10.0.1.0".parse()?, 24)]);
//! let web = ServiceId([1; 16]);
//! network.change(|zone| {
//!     let service = Service { names: vec!["web".into()], virtual_addresses: vec!["10.0.1.2".parse()?] };
//!     zone.put_service(web, &service);
//!     let endpoint = Endpoint {
//!         service: Some(web),
//!         addresses: vec!["10.0.1.3".parse()?],
//!         names: vec!["web.1.q8xnzk".into()],
//!         serving: Serving::Yes,
//!     };
//!     zone.put_endpoint(EndpointId([2; 16]), &endpoint);
//!     Ok::<_, std::net::AddrParseError>(())
//! })?;
//!
//! // For each sandbox: sockets bound at 127.0.0.11:53 in its namespace.
//! let view = View::new(vec![network])
//!     .own(&["web.1.q8xnzk".into()], &["10.0.1.3".parse()?])
//!     .search(&["example.org".into()])
//!     .options(&["ndots:0".into()])
//!     .upstream(Upstream::Host); // left out where every network is internal
//! server.add("q8xnzk", udp, tcp, view)?;
//! server.remove("q8xnzk").await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is answered
//!
//! - A service's name and aliases: its virtual addresses, or with dnsrr its serving tasks, in random order.
//!   `tasks.<service>`: its serving tasks, always.
//! - A task's own names: its addresses while it serves; asked by itself: always.
//! - All of these with `.<network>` appended, on that network alone; with one of the sandbox's search domains appended,
//!   where the name servers know no such name.
//! - Addresses in reverse (PTR): the first name of the service or task. Addresses of our subnets that nobody has: no such
//!   name.
//! - `localhost`, and names under it.
//! - Anything else is forwarded to the sandbox's name servers, or does not exist where it has no way out.
//!
//! In resolv.conf of a sandbox there should be `options ndots:0` unless its user chose another, as with Docker: then
//! resolvers ask for `web` itself first, and not for `web.example.org`.
//!
//! The ingress network belongs into no view: its addresses are nobody's to know. Give `own` the addresses on the others.
//!
//! # Open files
//!
//! Two for each sandbox, one for each of its TCP connections (32 at most), and one for each question that is under way to
//! name servers (256 for a sandbox, 1024 for all; up to six where all servers are silent). The process should raise its
//! soft limit of open files to its hard limit.
//!
//! # Start reading at
//!
//! `answer` (what a question is answered with), `zone` (the names of a network), `sandbox` (the loops), `upstream`.

mod answer;
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod name;
mod pool;
mod resolv;
mod sandbox;
mod server;
mod sockets;
mod upstream;
mod view;
mod zone;

pub use server::{Server, ServerError};
pub use upstream::{NameServers, Origin, Upstream};
pub use view::{Network, View};
pub use zone::{Endpoint, EndpointId, Service, ServiceId, Serving, Zone};
