//! How clients reach a manager: one question and one answer per connection, length first, over turmoil's TCP. It stands
//! for the socket that the command line uses; behind it is the store as the control API has it.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skep_core::codec;
use skep_manager::sim::{Certificate, NodeApi};
use skep_manager::store::{Store, WriteError};
use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use turmoil::net::{TcpListener, TcpStream};

/// The clients' port.
const PORT: u16 = 80;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(1);
/// No message is longer.
const LONGEST: u32 = 16 << 20;

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// A user's write: an entry with one transaction.
    Write(Vec<u8>),
    /// What is stored, with everything that was acknowledged before.
    Read,
    /// A node joins the swarm, to be a manager.
    Join(u128),
    /// What a node's certificate says.
    Certificate(u128),
    /// A node is to be a manager, or a worker.
    SetRole(u128, bool),
    /// A node is to be removed.
    Remove(u128),
}

/// An image name: its version and its content.
pub(crate) type Stored = (String, u64, String);

/// What a manager answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Written {
        version: u64,
        object_id: Vec<u8>,
    },
    Names {
        version: u64,
        names: Vec<Stored>,
    },
    /// What was asked about a node is done.
    Done,
    Certificate(Told),
    Refused(String),
    NoLeader,
    Unknown,
    Stopped(String),
}

/// See [`Certificate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    None,
    Worker,
    Manager,
    Denied,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The question was not sent.
    NeverSent,
    /// It may have arrived.
    OnTheWay,
}

/// Answers clients until the host ends.
pub(crate) async fn serve(store: Store, nodes: NodeApi) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (store, nodes) = (store.clone(), nodes.clone());
        tokio::task::spawn_local(async move {
            // The client sees that its connection ended.
            let _ = answer(stream, &store, &nodes).await;
        });
    }
}

async fn answer(mut stream: TcpStream, store: &Store, nodes: &NodeApi) -> io::Result<()> {
    let question = receive(&mut stream).await?;
    let answer = match serde_json::from_slice(&question)? {
        Question::Write(entry) => write(store, &entry).await,
        Question::Read => read(store).await,
        Question::Join(node) => nodes.join(NodeId::new(node)).await.map_or_else(refusal, |()| Answer::Done),
        Question::Certificate(node) => {
            nodes.certificate(NodeId::new(node)).await.map_or_else(refusal, |told| Answer::Certificate(told.into()))
        }
        Question::SetRole(node, is_manager) => {
            let role = if is_manager { NodeRole::Manager } else { NodeRole::Worker };
            nodes.set_role(NodeId::new(node), role).await.map_or_else(node_refusal, |()| Answer::Done)
        }
        Question::Remove(node) => nodes.remove(NodeId::new(node)).await.map_or_else(node_refusal, |()| Answer::Done),
    };
    send(&mut stream, &answer).await
}

async fn write(store: &Store, entry: &[u8]) -> Answer {
    let mut transactions = codec::decode_entry(entry).unwrap_or_default();
    let Some(transaction) = transactions.pop() else { return Answer::Refused("no transaction".to_owned()) };
    let changes = transaction.groups.into_iter().flat_map(|group| group.0).collect();
    match store.write(transaction.request, transaction.object_id, changes).await {
        Ok(written) => Answer::Written { version: written.version, object_id: written.object_id },
        Err(error) => refusal(error),
    }
}

async fn read(store: &Store) -> Answer {
    match store.fresh().await {
        Ok(state) => {
            let names = state.image_names().map(|it| (it.name.clone(), it.meta.version, it.digest.clone())).collect();
            Answer::Names { version: state.version(), names }
        }
        Err(error) => refusal(error),
    }
}

fn refusal(error: WriteError) -> Answer {
    match error {
        WriteError::Refused(refused) => Answer::Refused(refused.to_string()),
        WriteError::NoLeader => Answer::NoLeader,
        WriteError::Unknown => Answer::Unknown,
        WriteError::Stopped(why) => Answer::Stopped(why),
    }
}

/// Of the node API: whether the state does not allow it, or it may be tried again.
fn node_refusal(status: tonic::Status) -> Answer {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => Answer::NoLeader,
        _ => Answer::Refused(status.message().to_owned()),
    }
}

impl From<Certificate> for Told {
    fn from(certificate: Certificate) -> Self {
        match certificate {
            Certificate::None => Self::None,
            Certificate::Worker => Self::Worker,
            Certificate::Manager => Self::Manager,
            Certificate::Denied => Self::Denied,
        }
    }
}

/// Asks a manager.
pub(crate) async fn ask(host: &str, question: &Question, within: Duration) -> Result<Answer, Lost> {
    let connecting = tokio::time::timeout(CONNECT, TcpStream::connect((host, PORT))).await;
    let Ok(Ok(mut stream)) = connecting else { return Err(Lost::NeverSent) };
    let exchange = async {
        send(&mut stream, question).await?;
        let answer = receive(&mut stream).await?;
        serde_json::from_slice(&answer).map_err(io::Error::other)
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Lost::OnTheWay),
    }
}

async fn send(stream: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &bytes].concat()).await
}

async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u32().await?;
    if len > LONGEST {
        return Err(io::Error::other("the message is too long"));
    }
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
