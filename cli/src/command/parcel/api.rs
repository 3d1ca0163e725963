//! The calls for secrets and for configs, and their answers in one form.

use std::collections::BTreeMap;
use std::fmt;

use skep_proto::v1::{
    Config, ConfigSpec, CreateConfigRequest, CreateSecretRequest, GetConfigRequest, GetSecretRequest,
    ListConfigsRequest, ListSecretsRequest, RemovePayloadsRequest, RollbackPayloadRequest, RotateRequest,
    RotateResponse, Secret, SecretSpec,
};
use skep_proto::validate::{self, Invalid, files};

use crate::client::{Client, write};
use crate::failure::Failure;
use crate::view::parcel::{Details, Parcel};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    Config,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) templated: bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

impl Kind {
    /// The most bytes that one has.
    pub(super) fn max_bytes(self) -> usize {
        match self {
            Self::Secret => files::MAX_SECRET_BYTES,
            Self::Config => files::MAX_CONFIG_BYTES,
        }
    }

    /// Whether one may have so many.
    pub(super) fn check_size(self, bytes: usize) -> Result<(), Invalid> {
        match self {
            Self::Secret => files::secret_size(bytes),
            Self::Config => files::config_size(bytes),
        }
    }

    /// Whether one may be called and labelled so.
    pub(super) fn check(self, draft: &Draft) -> Result<(), Invalid> {
        match self {
            Self::Secret => validate::secret_spec(&secret_spec(draft.clone())),
            Self::Config => validate::config_spec(&config_spec(draft.clone())),
        }
    }
}

fn secret_spec(Draft { name, labels, templated }: Draft) -> SecretSpec {
    SecretSpec { name, labels, templated }
}

fn config_spec(Draft { name, labels, templated }: Draft) -> ConfigSpec {
    ConfigSpec { name, labels, templated }
}

fn of_secret(secret: Secret) -> Parcel {
    let SecretSpec { name, labels, templated } = secret.spec.unwrap_or_default();
    Parcel { id: secret.id, meta: secret.meta, name, labels, templated, versions: secret.versions }
}

fn of_config(config: Config) -> Parcel {
    let ConfigSpec { name, labels, templated } = config.spec.unwrap_or_default();
    Parcel { id: config.id, meta: config.meta, name, labels, templated, versions: config.versions }
}

pub(super) async fn list(client: &Client, kind: Kind) -> Result<Vec<Parcel>, Failure> {
    Ok(match kind {
        Kind::Secret => {
            let call = async |read| client.secrets().list(ListSecretsRequest { read }).await;
            client.read(call).await?.into_inner().secrets.into_iter().map(of_secret).collect()
        }
        Kind::Config => {
            let call = async |read| client.configs().list(ListConfigsRequest { read }).await;
            client.read(call).await?.into_inner().configs.into_iter().map(of_config).collect()
        }
    })
}

/// With a config's newest data.
pub(super) async fn get(client: &Client, kind: Kind, reference: &str) -> Result<Details, Failure> {
    let missing = |status| Failure::from_lookup(&kind.to_string(), reference, status);
    let reference = reference.to_owned();
    Ok(match kind {
        Kind::Secret => {
            let call = async |read| client.secrets().get(GetSecretRequest { reference: reference.clone(), read }).await;
            let answer = client.read(call).await.map_err(missing)?.into_inner();
            Details { parcel: of_secret(answer.secret.unwrap_or_default()), uses: answer.uses, data: None }
        }
        Kind::Config => {
            let request = |read| GetConfigRequest { reference: reference.clone(), read, payload_version: 0 };
            let call = async |read| client.configs().get(request(read)).await;
            let answer = client.read(call).await.map_err(missing)?.into_inner();
            let data = Some(answer.data);
            Details { parcel: of_config(answer.config.unwrap_or_default()), uses: answer.uses, data }
        }
    })
}

/// Returns the id.
pub(super) async fn create(client: &Client, kind: Kind, draft: &Draft, data: &[u8]) -> Result<Vec<u8>, Failure> {
    Ok(match kind {
        Kind::Secret => {
            let answer = write(|options| {
                let (mut secrets, spec) = (client.secrets(), Some(secret_spec(draft.clone())));
                let request = CreateSecretRequest { spec, data: data.to_vec(), write: Some(options) };
                async move { secrets.create(request).await }
            });
            answer.await?.id
        }
        Kind::Config => {
            let answer = write(|options| {
                let (mut configs, spec) = (client.configs(), Some(config_spec(draft.clone())));
                let request = CreateConfigRequest { spec, data: data.to_vec(), write: Some(options) };
                async move { configs.create(request).await }
            });
            answer.await?.id
        }
    })
}

pub(super) async fn remove(client: &Client, kind: Kind, reference: &str) -> Result<(), Failure> {
    let removed = write(|options| {
        let (mut secrets, mut configs) = (client.secrets(), client.configs());
        let request = RemovePayloadsRequest { reference: reference.to_owned(), write: Some(options) };
        async move {
            match kind {
                Kind::Secret => secrets.remove(request).await,
                Kind::Config => configs.remove(request).await,
            }
        }
    });
    removed.await.map_err(|status| Failure::from_lookup(&kind.to_string(), reference, status))?;
    Ok(())
}

/// Without `write`, which is filled in.
pub(super) async fn rotate(client: &Client, kind: Kind, request: &RotateRequest) -> Result<RotateResponse, Failure> {
    let rotated = write(|options| {
        let (mut secrets, mut configs) = (client.secrets(), client.configs());
        let request = RotateRequest { write: Some(options), ..request.clone() };
        async move {
            match kind {
                Kind::Secret => secrets.rotate(request).await,
                Kind::Config => configs.rotate(request).await,
            }
        }
    });
    rotated.await.map_err(|status| Failure::from_lookup(&kind.to_string(), &request.reference, status))
}

/// Without `write`, which is filled in.
pub(super) async fn roll_back(
    client: &Client,
    kind: Kind,
    request: &RollbackPayloadRequest,
) -> Result<RotateResponse, Failure> {
    let rolled_back = write(|options| {
        let (mut secrets, mut configs) = (client.secrets(), client.configs());
        let request = RollbackPayloadRequest { write: Some(options), ..request.clone() };
        async move {
            match kind {
                Kind::Secret => secrets.rollback(request).await,
                Kind::Config => configs.rollback(request).await,
            }
        }
    });
    rolled_back.await.map_err(|status| match request.to_version {
        0 => Failure::from_lookup(&kind.to_string(), &request.reference, status),
        // The manager's words say whether it is the object or its version that is not there.
        _ => status.into(),
    })
}
