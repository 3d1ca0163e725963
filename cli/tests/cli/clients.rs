//! `client create|renew|ls|rm` and the contexts that are made from their files. The keys and certificates are real ones.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use skep_identity::{ClientCredentials, ClientGrant, RootCa};
use skep_proto::id::{ClientId, ClusterId};
use skep_proto::v1::*;
use tonic::{Request, Response, Status};

use crate::fake::{Answer, Api, Fake, Script};
use crate::run::{Run, command, finish};

static CA: LazyLock<RootCa> = LazyLock::new(|| RootCa::generate(ClusterId::new(1), SystemTime::now()).unwrap());

impl Api {
    fn person(&self, reference: &str) -> Result<Client, Status> {
        let is_it = |person: &&Client| {
            person.name == reference || ClientId::from_wire(&person.id).unwrap().to_string() == reference
        };
        let found = self.script().clients.iter().find(is_it).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no client {reference}")))
    }
}

fn certified(person: &Client, csr_pem: &str, expiry_ms: i64) -> Answer<CreateClientResponse> {
    let validity = match expiry_ms {
        0 => Duration::from_secs(90 * 86_400),
        ms => Duration::from_millis(ms.try_into().unwrap()),
    };
    let grant = ClientGrant { client_id: ClientId::from_wire(&person.id).unwrap(), validity };
    let issued = CA.issue_client(csr_pem.as_bytes(), &grant, SystemTime::now());
    let issued = issued.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Response::new(CreateClientResponse {
        id: person.id.clone(),
        cert_chain_pem: issued.chain_pem,
        root_cert_pem: CA.cert().to_pem(),
        managers: vec!["10.0.0.1:2377".to_owned()],
        ..CreateClientResponse::default()
    }))
}

#[tonic::async_trait]
impl clients_server::Clients for Api {
    async fn list(&self, _: Request<ListClientsRequest>) -> Answer<ListClientsResponse> {
        Ok(Response::new(ListClientsResponse { clients: self.script().clients.clone(), version: 1 }))
    }

    async fn get(&self, request: Request<GetClientRequest>) -> Answer<GetClientResponse> {
        let client = Some(self.person(&request.into_inner().reference)?);
        Ok(Response::new(GetClientResponse { client, version: 1 }))
    }

    async fn create(&self, request: Request<CreateClientRequest>) -> Answer<CreateClientResponse> {
        let CreateClientRequest { name, role, csr_pem, cert_expiry_ms, .. } = request.into_inner();
        if self.person(&name).is_ok() {
            return Err(Status::already_exists(format!("name {name} is taken")));
        }
        let id = vec![7 + self.script().clients.len() as u8; 16];
        let person = Client { id, name, role, ..Client::default() };
        let answer = certified(&person, &csr_pem, cert_expiry_ms)?;
        self.script().clients.push(person);
        Ok(answer)
    }

    async fn renew(&self, request: Request<RenewClientRequest>) -> Answer<CreateClientResponse> {
        let RenewClientRequest { reference, csr_pem, cert_expiry_ms, .. } = request.into_inner();
        certified(&self.person(&reference)?, &csr_pem, cert_expiry_ms)
    }

    async fn remove(&self, request: Request<RemoveClientRequest>) -> Answer<RemoveClientResponse> {
        let person = self.person(&request.into_inner().reference)?;
        self.script().clients.retain(|other| other.id != person.id);
        Ok(Response::new(RemoveClientResponse { id: person.id, version: 2, name: person.name }))
    }
}

/// A command of a user whose home this is, and who is there.
async fn at(home: &Path, fake: &Fake, args: &[&str]) -> Run {
    let child = command(fake.socket(), args).env("HOME", home).current_dir(home).spawn().unwrap();
    finish(child).await
}

fn bundle(file: &Path) -> (Value, ClientCredentials) {
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let text = |field: &str| value[field].as_str().unwrap().to_owned();
    let credentials = ClientCredentials::from_pem(&text("ca"), &text("cert"), &text("key")).unwrap();
    (value, credentials)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_made_and_renewed() {
    let (fake, home) = (Fake::manager(Script::default()), tempfile::tempdir().unwrap());
    let home = home.path();
    let run = at(home, &fake, &["client", "create", "--role", "viewer", "ann"]).await;
    let id = ClientId::from_wire(&[7; 16]).unwrap();
    assert_eq!((run.code, run.out), (Some(0), format!("{id}\n")), "{}", run.err);
    assert!(run.err.contains("skep context create NAME --bundle ./ann.skep`"), "{}", run.err);
    let args = ["client", "renew", "--expiry", "2h", "--output", "new.skep", "ann"];
    let run = at(home, &fake, &args).await;
    assert_eq!((run.code, run.out), (Some(0), format!("{id}\n")), "{}", run.err);
    assert!(run.err.contains("skep context update NAME --bundle new.skep`"), "{}", run.err);
    let ((before, first), (after, second)) = (bundle(&home.join("ann.skep")), bundle(&home.join("new.skep")));
    assert_eq!((&after["client"], &after["role"]), (&"ann".into(), &"viewer".into()));
    assert_eq!((first.identity().client_id, second.identity().client_id), (id, id));
    assert_ne!(before["key"], after["key"], "a key of its own");
    assert!(second.identity().not_after < SystemTime::now() + Duration::from_secs(7200));

    // What is there is not touched, and what comes to nothing leaves nothing.
    let run = at(home, &fake, &["client", "renew", "--output", "new.skep", "ann"]).await;
    assert_eq!((run.code, bundle(&home.join("new.skep")).0), (Some(64), after), "{}", run.err);
    for args in [
        &["client", "create", "--role", "admin", "--output", "other.skep", "ann"][..],
        &["client", "renew", "--output", "other.skep", "gone"],
    ] {
        assert_eq!(at(home, &fake, args).await.code, Some(1), "{args:?}");
        assert!(!home.join("other.skep").exists(), "{args:?}");
    }
    let run = at(home, &fake, &["client", "renew", "--expiry", "1s", "--output", "other.skep", "ann"]).await;
    assert_eq!((run.code, home.join("other.skep").exists()), (Some(64), false), "{}", run.err);
    // Ids are whole anyway.
    assert_eq!(at(home, &fake, &["client", "ls", "--no-trunc"]).await.code, Some(64));
    let run = at(home, &fake, &["client", "rm", "gone", "ann"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(1), "ann\n", "error: no such client: gone\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_made_and_changed() {
    let (fake, home) = (Fake::manager(Script::default()), tempfile::tempdir().unwrap());
    let home = home.path();
    for (name, role) in [("ann", "viewer"), ("bob", "admin")] {
        assert_eq!(at(home, &fake, &["client", "create", "--role", role, name]).await.code, Some(0));
    }
    let shown = async || {
        let format = "{{.Client}} {{.Role}} {{json .Hosts}}";
        at(home, &fake, &["context", "inspect", "-f", format, "prod"]).await.out
    };
    for (args, code) in [
        (&["context", "update", "prod", "--bundle", "ann.skep"][..], 1),
        (&["context", "create", "prod"], 64),
        (&["context", "create", "prod", "--host", "a"], 64),
        (&["context", "create", "prod", "--bundle", "ann.skep"], 0),
        (&["context", "create", "prod", "--bundle", "bob.skep"], 1),
        (&["context", "update", "prod"], 64),
        (&["context", "update", "prod", "--host", "tcp://a,b:99"], 0),
    ] {
        let run = at(home, &fake, args).await;
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
    }
    assert_eq!(shown().await, "ann viewer [\"tcp://a:2377\",\"tcp://b:99\"]\n");
    assert_eq!(at(home, &fake, &["context", "update", "prod", "--bundle", "bob.skep"]).await.out, "prod\n");
    assert_eq!(shown().await, "bob admin [\"tcp://10.0.0.1:2377\"]\n");
}
