//! Every bound of the dispatcher, in one place, each with its reason: a node that misbehaves can only hurt itself.

use std::time::Duration;

/// A node that misses this many heartbeats in a row is down.
pub(crate) const MISSED_HEARTBEATS: u32 = 3;
/// Heartbeat period unless the cluster's spec says otherwise.
pub(crate) const DEFAULT_PERIOD: Duration = Duration::from_secs(1);
/// No spec makes nodes report faster or slower than this.
pub(crate) const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
/// See [`SHORTEST_PERIOD`].
pub(crate) const LONGEST_PERIOD: Duration = Duration::from_secs(60);
/// The period grows with the cluster so that all heartbeats together stay at about a thousand a second …
pub(crate) const HEARTBEATS_PER_SECOND: usize = 1000;
/// … but by itself never beyond this.
pub(crate) const LONGEST_SCALED_PERIOD: Duration = Duration::from_secs(5);

/// How often a manager tells the leader which nodes it heard, and whose sessions it has: a quarter of a heartbeat, so that
/// relaying costs little of the nodes' three.
pub(crate) const RELAY_EVERY: Duration = Duration::from_millis(250);
/// Sessions that come and go are told sooner, but at most so often.
pub(crate) const RELAY_NEWS_EVERY: Duration = Duration::from_millis(20);
/// How often the leader says to every manager that it leads.
pub(crate) const LEADER_BEAT: Duration = Duration::from_millis(100);
/// A manager that hears no leader for so long, two election timeouts, ends its sessions: the nodes turn to others.
pub(crate) const LEADERLESS: Duration = Duration::from_millis(1000);
/// Largest message that managers take from each other.
pub(crate) const RELAY_MESSAGE: usize = 64 << 20;
/// Pause before a manager turns to the leader again, whose link broke off or who does not lead yet.
pub(crate) const RELAY_RETRY: Duration = Duration::from_millis(50);
/// Messages on their way between managers; beyond it the other one does not read, and the link is given up.
pub(crate) const RELAY_QUEUE: usize = 64;
/// Size of one message between managers, about: the rest goes into the next one.
pub(crate) const RELAY_BYTES: usize = 1 << 20;
/// A new leader forgets, after this, the sessions of managers that have not come to it.
pub(crate) const HOMES_KEPT: Duration = Duration::from_secs(3);
/// How long the leader is waited for when it is asked who holds an image, and none is known here …
pub(crate) const HOLDERS_WITHIN: Duration = Duration::from_secs(1);
/// … and when some are: the leader only knows more of them.
pub(crate) const MORE_HOLDERS_WITHIN: Duration = Duration::from_millis(100);

/// The first message of a session must come within this.
pub(crate) const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// How long a node that reads nothing may take to hear why its session ends.
pub(crate) const FAREWELL_WITHIN: Duration = Duration::from_secs(5);
/// How long the sets sent to a node are kept after its session ended, so that it can resume.
pub(crate) const RESUME_WITHIN: Duration = Duration::from_secs(60);
/// Sent sets kept for resuming: those between what the node acknowledged and the last one. They share their tasks.
pub(crate) const KEPT_SETS: usize = 16;

/// Shortest pause between two assignment messages to one node: a burst of changes becomes a few messages.
pub(crate) const ASSIGN_EVERY: Duration = Duration::from_millis(8);
/// Size of one difference, so that acknowledgements are never long behind one.
pub(crate) const DIFFERENCE_BYTES: usize = 1 << 20;
/// Size of a complete set, which a node applies as a whole: half of what nodes take in one message (64 MiB).
pub(crate) const COMPLETE_BYTES: usize = 32 << 20;

/// Size of one message of a network's table, about: each of many sessions may have one of them half sent.
pub(crate) const TABLE_BYTES: usize = 256 << 10;
/// Networks that a node can say to have tables of; the others it gets whole.
pub(crate) const NODE_NETWORKS: usize = 4096;

/// Acknowledgements and requests on their way to one node; a node that reads none of them is not worth more memory.
pub(crate) const URGENT_QUEUE: usize = 256;
/// Assignment messages on their way to one node: the next one waits for the network, and is then up to date.
pub(crate) const BULK_QUEUE: usize = 2;
/// Shortest pause between two writes of what a node says of itself: the latest counts.
pub(crate) const DESCRIBE_EVERY: Duration = Duration::from_secs(1);
/// Status batches of one node that wait for the store; beyond it the node is not read any further.
pub(crate) const PENDING_BATCHES: usize = 8;

/// Changes in one write of reports: the limit of a Raft entry.
pub(crate) const REPORT_CHANGES: usize = 2_000;
/// Bytes in one write of reports: half of a Raft entry.
pub(crate) const REPORT_BYTES: usize = 512 << 10;
/// How long reports wait for others while a write is under way.
pub(crate) const REPORT_GATHER: Duration = Duration::from_millis(5);
/// Writes of reports under way at a time.
pub(crate) const REPORTS_IN_FLIGHT: usize = 3;
/// Reports of all nodes that wait to be put into a write; beyond it sessions wait.
pub(crate) const REPORT_QUEUE: usize = 1024;

/// Bytes of a node's description.
pub(crate) const DESCRIPTION_BYTES: usize = 64 << 10;
/// Bytes of a status' error; the rest is cut off.
pub(crate) const ERROR_BYTES: usize = 4 << 10;
/// Bytes of a status' message; the rest is cut off.
pub(crate) const MESSAGE_BYTES: usize = 1 << 10;
/// Containers in a status.
pub(crate) const STATUS_CONTAINERS: usize = 64;
/// Bytes of a container's name or id in a status; the rest is cut off.
pub(crate) const CONTAINER_NAME_BYTES: usize = 128;
/// Bytes of a failed health check's output in a status; the rest is cut off.
pub(crate) const HEALTH_OUTPUT_BYTES: usize = 4 << 10;
/// Images of one node in the index.
pub(crate) const HELD_IMAGES: usize = 10_000;

/// Peers in an answer about an image.
pub(crate) const IMAGE_PEERS: usize = 8;
/// How long an image ticket holds: long enough to pull a large image, short enough to be worthless soon.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(600);
