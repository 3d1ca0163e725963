//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use std::net::SocketAddr;

use crate::answer::{Decision, decide};
use crate::message::{Parsed, Transport, parse};
use crate::resolv;
use crate::view::View;

/// A query of a sandbox, by UDP and by TCP, and what a name server says to it. Gives every answer that the sandbox would
/// get, with the most octets that it may have.
pub fn exchange(view: &View, query: &[u8], said: &[u8]) -> Vec<(Vec<u8>, usize)> {
    let mut answers = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        let request = match parse(query, transport) {
            Parsed::Drop => continue,
            Parsed::Reply(reply) => {
                answers.push((reply, usize::from(u16::MAX)));
                continue;
            }
            Parsed::Request(request) => request,
        };
        let limit = request.limit();
        match decide(view, &request.question(), 7) {
            Decision::Answer(answer) | Decision::AskOr(answer) => answers.push((request.answer(&answer), limit)),
            Decision::Ask => answers.push((request.failure(), limit)),
        }
        assert!(!request.forwarded(0x1234).is_empty(), "what was read can be asked on");
        if let Some(said) = request.verify(0x1234, said) {
            answers.push((request.relay(said), limit));
        }
    }
    answers
}

/// The host's resolv.conf. Gives its name servers.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    resolv::parse(text, |interface| interface.parse().ok())
}
