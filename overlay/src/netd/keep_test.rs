//! What is written is read again, whatever became of the file.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::id::TaskId;

use super::*;

const NETWORK: NetworkId = NetworkId::new(7);

fn endpoint(id: u128, last: u8) -> v1::NetworkEndpoint {
    v1::NetworkEndpoint {
        task_id: TaskId::new(id).to_vec(),
        node_id: TaskId::new(1).to_vec(),
        service_id: TaskId::new(1).to_vec(),
        addresses: vec![vec![10, 0, 1, last]],
        names: vec![format!("task{id}")],
        state: 1,
        last_resort: false,
    }
}

fn whole(version: u64) -> v1::NetworkTable {
    let peer = v1::NetworkPeer { node_id: vec![1; 16], fabric_number: 4, ..v1::NetworkPeer::default() };
    let service =
        v1::NetworkService { service_id: vec![2; 16], names: vec!["web".to_owned()], ..v1::NetworkService::default() };
    v1::NetworkTable {
        network_id: NETWORK.to_vec(),
        complete: true,
        version,
        end: true,
        network: Some(v1::Network { vni: 4097, ..v1::Network::default() }),
        data_path_port: 4800,
        put_endpoints: vec![endpoint(1, 1)],
        put_peers: vec![peer],
        put_services: vec![service],
        ..v1::NetworkTable::default()
    }
}

fn difference(version: u64, row: v1::NetworkEndpoint) -> v1::NetworkTable {
    v1::NetworkTable {
        network_id: NETWORK.to_vec(),
        applies_to: version - 1,
        version,
        end: true,
        put_endpoints: vec![row],
        ..v1::NetworkTable::default()
    }
}

/// A journal with a table and `count` differences, and the table itself.
fn journal(dir: &Path, count: u64) -> (Journal, FollowedTable) {
    let (mut journal, mut followed) = (Journal::new(dir, NETWORK), FollowedTable::default());
    followed.take(NETWORK, &whole(1)).unwrap();
    journal.keep(followed.current(), None);
    for version in 2..=count + 1 {
        let message = difference(version, endpoint((version % 50).into(), 9));
        followed.take(NETWORK, &message).unwrap();
        journal.keep(followed.current(), Some(&message));
    }
    (journal, followed)
}

#[test]
fn a_table_is_read_as_it_was_kept_and_its_file_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    for count in [0, 1, 20, 3000] {
        let (mut journal, followed) = journal(dir.path(), count);
        let kept = journal.read().unwrap();
        assert_eq!((kept.followed.current(), kept.dropped), (followed.current(), false));
        assert!(fs::metadata(&journal.path).unwrap().len() < 2 * APPENDED);
        journal.drop_table(followed.current());
        let kept = journal.read().unwrap();
        assert_eq!((kept.followed.current(), kept.dropped), (followed.current(), true));
        let again = difference(count + 2, endpoint(3, 3));
        let mut followed = followed;
        followed.take(NETWORK, &again).unwrap();
        // A new process has nothing open, and writes all of it.
        Journal::new(dir.path(), NETWORK).keep(followed.current(), Some(&again));
        let kept = journal.read().unwrap();
        assert_eq!((kept.followed.current(), kept.dropped), (followed.current(), false));
        journal.remove();
        assert_eq!(journal.read().unwrap().followed.current().version, 0);
    }
}

#[test]
fn a_kill_loses_the_last_change_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, followed) = journal(dir.path(), 3);
    let bytes = fs::read(&journal.path).unwrap();
    let versions: std::collections::BTreeSet<u64> = (0..=bytes.len())
        .map(|length| {
            let kept = table(NETWORK, &bytes[..length]).unwrap();
            kept.followed.current().version
        })
        .collect();
    assert_eq!(versions, (0..=followed.current().version).collect());
}

#[test]
fn requests_are_kept_in_mode_0600() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    assert!(read::<v1::ConfigureRequest>(&path).unwrap().is_none());
    for key in [vec![1; 32], vec![2; 32]] {
        let request = v1::ConfigureRequest { private_key: key, ..v1::ConfigureRequest::default() };
        write(&path, &request).unwrap();
        assert_eq!(read(&path).unwrap(), Some(request));
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, b"").unwrap();
    assert!(read::<v1::ConfigureRequest>(&path).is_err());
}

proptest! {
    /// One wrong byte is found, or it tears the rest off: what is read is a version that was.
    #[test]
    fn damage_is_found(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = journal(dir.path(), 3);
        let mut bytes = fs::read(&journal.path).unwrap();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        if let Ok(kept) = table(NETWORK, &bytes) {
            let version = kept.followed.current().version;
            prop_assert!(version < 4);
            let mut right = FollowedTable::default();
            for version in 1..=version {
                let message = if version == 1 { whole(1) } else { difference(version, endpoint(version.into(), 9)) };
                right.take(NETWORK, &message).unwrap();
            }
            prop_assert_eq!(kept.followed.current(), right.current());
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = table(NETWORK, &bytes);
        let mut framed = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
        framed.extend(crc32fast::hash(&bytes).to_le_bytes());
        framed.extend(&bytes);
        let _ = table(NETWORK, &framed);
    }
}
