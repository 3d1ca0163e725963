//! Batches over real loopback sockets, with and without the kernel's offloads.

use super::*;

fn pair(gro: bool) -> (OwnedFd, OwnedFd, SocketAddr) {
    let any = "127.0.0.1:0".parse().unwrap();
    let (a, b) = (bind(any, false, gro).unwrap(), bind(any, false, gro).unwrap());
    let to = local_address(&b).unwrap();
    (a, b, to)
}

/// What arrives when these datagrams are sent as a batch.
fn exchange(lengths: &[usize], merge: bool, gro: bool) -> (Vec<Vec<u8>>, usize) {
    let (a, b, to) = pair(gro);
    let mut batch = Batch::new(1 << 20);
    for (index, length) in lengths.iter().enumerate() {
        batch.room(*length).unwrap().fill(index as u8);
        batch.commit(*length, to, merge);
    }
    assert!(batch.send(|_| Some(&a), |_, count| panic!("{count} not sent")));
    let (mut inbox, mut received, mut messages) = (Inbox::new(), vec![], 0);
    while received.len() < lengths.len() {
        let count = inbox.receive(&b).unwrap();
        for index in 0..count {
            let message = inbox.message(index).unwrap();
            assert_eq!(message.from, local_address(&a).unwrap());
            received.extend(inbox.bytes[message.place].chunks(message.size).map(<[u8]>::to_vec));
            messages += 1;
        }
    }
    (received, messages)
}

const LENGTHS: [usize; 9] = [1000, 1000, 1000, 700, 1000, 1000, 1400, 1, 1];

#[test]
fn datagrams_arrive_in_order_with_and_without_the_offloads() {
    let expected: Vec<_> = LENGTHS.iter().enumerate().map(|(index, length)| vec![index as u8; *length]).collect();
    for merge in [false, true] {
        for gro in [false, true] {
            let (received, messages) = exchange(&LENGTHS, merge, gro);
            assert_eq!(received, expected, "merge {merge}, gro {gro}");
            if merge && gro {
                assert!(messages < LENGTHS.len(), "nothing was put together");
            } else if !gro {
                assert_eq!(messages, LENGTHS.len());
            }
        }
    }
}

#[test]
fn many_small_datagrams_are_cut_at_the_limit() {
    let lengths = vec![100; 200];
    assert_eq!(exchange(&lengths, true, true).0.len(), 200);
}

#[test]
fn what_cannot_be_sent_is_told() {
    let (a, _b, _) = pair(false);
    let to: SocketAddr = "[::1]:9".parse().unwrap();
    let mut batch = Batch::new(4096);
    for _ in 0..3 {
        batch.room(100).unwrap();
        batch.commit(100, to, true);
    }
    let mut failed = 0;
    assert!(batch.send(|_| Some(&a), |_, count| failed += count), "an IPv6 address on an IPv4 socket");
    assert_eq!(failed, 3);
    assert!(batch.is_empty());
}

#[test]
fn a_stopped_socket_wakes_its_receiver() {
    let (a, _b, _) = pair(true);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| Inbox::new().receive(&a).map(|_| Inbox::new().receive(&a)));
        stop(&a);
        let _ = receiver.join().unwrap();
    });
}

#[test]
fn addresses_survive_the_kernels_form() {
    for address in ["192.0.2.7:51820", "[2001:db8::7]:1", "[fe80::1%3]:9"] {
        let address: SocketAddr = address.parse().unwrap();
        assert_eq!(decode(&encode(&address).0), Some(address));
    }
}
