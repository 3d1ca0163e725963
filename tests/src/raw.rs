//! Calls by hand: any method, with a node's certificate taken from its host's disk. What an attacker with one host has.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use skep_identity::transport::ChannelOptions;
use skep_identity::{ClientTls, Credentials, DenyList, Expected, LiveCredentials, NodeKey, RootBundle};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::lab::Lab;

/// How long an answer may take; streams that say nothing within it have let the call in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every method of every service in `proto/v1`, as `Service.Method`.
pub fn methods() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/v1");
    let entries = std::fs::read_dir(&folder).expect("the descriptions of the services are there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned());
    let files: Vec<String> = names.filter(|name| name.ends_with(".proto")).collect();
    let descriptors = protox::compile(files, [&folder]).expect("they are well-formed");
    let mut methods = Vec::new();
    for service in descriptors.file.iter().flat_map(|file| &file.service) {
        methods.extend(service.method.iter().map(|method| format!("{}.{}", service.name(), method.name())));
    }
    methods
}

/// The certificate and key that a host's daemon has on its disk.
pub fn credentials(lab: &Lab, host: u32) -> LiveCredentials {
    let folder = lab.data(host).join("identity");
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).expect("the host is in a swarm");
    let key: String = read("node.key").lines().filter(|line| !line.starts_with("-----")).collect();
    let key = base64::prelude::BASE64_STANDARD.decode(key).expect("PEM");
    let key = NodeKey::from_pkcs8_der(&key).expect("a key");
    let roots = RootBundle::from_pem(&read("root.crt")).expect("roots");
    LiveCredentials::new(Credentials::new(key, &read("node.crt"), roots).expect("they belong together"))
}

/// A channel to a manager as that node; without a certificate if there is none, then it trusts the roots of `of`.
pub fn channel(addr: &str, of: &LiveCredentials, show: bool) -> Channel {
    let tls = if show {
        ClientTls::member(of, &DenyList::new(), Expected::manager())
    } else {
        ClientTls::joining(of.current().roots().clone())
    };
    skep_identity::transport::channel(vec![addr.to_owned()], tls, ChannelOptions::NODES)
}

/// Calls `Service.Method` with one empty message. `Ok`: it was let in, and answers or says nothing.
pub async fn call(channel: &Channel, method: &str) -> Result<(), Status> {
    let path = format!("/skep.v1.{}", method.replace('.', "/"));
    let path = PathAndQuery::try_from(path).expect("a method's name is a path");
    let mut grpc = Grpc::new(channel.clone());
    let asked = async {
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let request = Request::new(futures::stream::iter([()]));
        grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await?.into_inner().message().await.map(drop)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Ok(()))
}
