//! `Debug` of messages that carry passwords, tokens or keys, without them. The generator leaves these messages' `Debug`
//! out (`tests/generated.rs` has the same list), so that a new field shows up only when it is named here.

use std::fmt;

use crate::v1::{
    Cluster, ConfigureRequest, CreateConfigRequest, CreateSecretRequest, EnterResponse, GetConfigResponse,
    IssueRequest, JoinTokenResponse, Payload, RegistryAuth, RootRotation, RotateRequest, RotateRootRequest,
    SwarmInitResponse, SwarmJoinRequest, UnlockKeyResponse, UnlockRequest,
};

/// Says whether a secret is there, never what it is.
struct Hidden(bool);

impl Hidden {
    fn new(secret: &[u8]) -> Self {
        Self(!secret.is_empty())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<hidden>" } else { "<none>" })
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("password", &Hidden::new(self.password.as_bytes()))
            .field("token", &Hidden::new(self.token.as_bytes()))
            .finish()
    }
}

impl fmt::Debug for ConfigureRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigureRequest")
            .field("node_id", &self.node_id)
            .field("private_key", &Hidden::new(&self.private_key))
            .field("previous_private_key", &Hidden::new(&self.previous_private_key))
            .field("wireguard_addr", &self.wireguard_addr)
            .field("vxlan_addr", &self.vxlan_addr)
            .finish()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("key", &self.key).field("data", &Hidden::new(&self.data)).finish()
    }
}

impl fmt::Debug for CreateSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateSecretRequest")
            .field("spec", &self.spec)
            .field("data", &Hidden::new(&self.data))
            .field("write", &self.write)
            .finish()
    }
}

impl fmt::Debug for CreateConfigRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateConfigRequest")
            .field("spec", &self.spec)
            .field("data", &Hidden::new(&self.data))
            .field("write", &self.write)
            .finish()
    }
}

impl fmt::Debug for GetConfigResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetConfigResponse")
            .field("config", &self.config)
            .field("version", &self.version)
            .field("uses", &self.uses)
            .field("data", &Hidden::new(&self.data))
            .finish()
    }
}

impl fmt::Debug for RotateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateRequest")
            .field("reference", &self.reference)
            .field("data", &Hidden::new(&self.data))
            .field("rollout", &self.rollout)
            .field("expect_version", &self.expect_version)
            .field("write", &self.write)
            .finish()
    }
}

impl fmt::Debug for IssueRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueRequest")
            .field("csr_pem", &self.csr_pem)
            .field("token", &Hidden::new(self.token.as_bytes()))
            .field("hostname", &self.hostname)
            .field("availability", &self.availability())
            .field("request_id", &self.request_id)
            .field("returning", &self.returning)
            .finish()
    }
}

impl fmt::Debug for SwarmJoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmJoinRequest")
            .field("remote_addrs", &self.remote_addrs)
            .field("token", &Hidden::new(self.token.as_bytes()))
            .field("listen_addr", &self.listen_addr)
            .field("advertise_addr", &self.advertise_addr)
            .field("availability", &self.availability())
            .finish()
    }
}

impl fmt::Debug for SwarmInitResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmInitResponse")
            .field("node_id", &self.node_id)
            .field("worker_token", &Hidden::new(self.worker_token.as_bytes()))
            .field("manager_addr", &self.manager_addr)
            .field("unlock_key", &Hidden::new(self.unlock_key.as_bytes()))
            .finish()
    }
}

impl fmt::Debug for UnlockKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnlockKeyResponse")
            .field("unlock_key", &Hidden::new(self.unlock_key.as_bytes()))
            .field("managers", &self.managers)
            .finish()
    }
}

impl fmt::Debug for UnlockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnlockRequest").field("unlock_key", &Hidden::new(self.unlock_key.as_bytes())).finish()
    }
}

impl fmt::Debug for EnterResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnterResponse")
            .field("raft_id", &self.raft_id)
            .field("unlock_key", &Hidden::new(&self.unlock_key))
            .field("data_key_epoch", &self.data_key_epoch)
            .finish()
    }
}

impl fmt::Debug for JoinTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokenResponse")
            .field("token", &Hidden::new(self.token.as_bytes()))
            .field("manager_addr", &self.manager_addr)
            .finish()
    }
}

impl fmt::Debug for RootRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootRotation")
            .field("root_cert_pem", &String::from_utf8_lossy(&self.root_cert_pem))
            .field("root_key_pem", &Hidden::new(&self.root_key_pem))
            .field("cross_signed_pem", &String::from_utf8_lossy(&self.cross_signed_pem))
            .field("digest", &self.digest)
            .field("started_at_ms", &self.started_at_ms)
            .finish()
    }
}

impl fmt::Debug for RotateRootRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateRootRequest")
            .field("root_cert_pem", &self.root_cert_pem)
            .field("root_key_pem", &Hidden::new(self.root_key_pem.as_bytes()))
            .field("node_cert_expiry_ms", &self.node_cert_expiry_ms)
            .field("write", &self.write)
            .finish()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("meta", &self.meta)
            .field("spec", &self.spec)
            .field("root_cert_pem", &String::from_utf8_lossy(&self.root_cert_pem))
            .field("root_key_pem", &Hidden::new(&self.root_key_pem))
            .field("worker_token_secret", &Hidden::new(&self.worker_token_secret))
            .field("manager_token_secret", &Hidden::new(&self.manager_token_secret))
            .field("feature_level", &self.feature_level)
            .field("last_raft_id", &self.last_raft_id)
            .field("recovery_epoch", &self.recovery_epoch)
            .field("unlock_key", &Hidden::new(&self.unlock_key))
            .field("data_key_epoch", &self.data_key_epoch)
            .field("root_rotation", &self.root_rotation)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{CreateServiceRequest, Credential};

    const SECRET: &str = "hunter2";

    #[test]
    fn secrets_are_not_printed() {
        let secret = || SECRET.to_owned();
        let auth = RegistryAuth { username: "bob".to_owned(), password: secret(), token: secret() };
        let texts = [
            format!("{:?}", Credential { auth: Some(auth.clone()), ..Credential::default() }),
            format!("{:?}", CreateServiceRequest { auth: Some(auth), ..CreateServiceRequest::default() }),
            format!("{:?}", IssueRequest { token: secret(), ..IssueRequest::default() }),
            format!("{:?}", SwarmJoinRequest { token: secret(), ..SwarmJoinRequest::default() }),
            format!("{:?}", SwarmInitResponse { worker_token: secret(), ..SwarmInitResponse::default() }),
            format!(
                "{:?}",
                ConfigureRequest {
                    private_key: secret().into_bytes(),
                    previous_private_key: secret().into_bytes(),
                    ..ConfigureRequest::default()
                }
            ),
            format!("{:?}", JoinTokenResponse { token: secret(), ..JoinTokenResponse::default() }),
            format!("{:?}", RootRotation { root_key_pem: secret().into_bytes(), ..RootRotation::default() }),
            format!("{:?}", RotateRootRequest { root_key_pem: secret(), ..RotateRootRequest::default() }),
            format!("{:?}", SwarmInitResponse { unlock_key: secret(), ..SwarmInitResponse::default() }),
            format!("{:?}", UnlockKeyResponse { unlock_key: secret(), ..UnlockKeyResponse::default() }),
            format!("{:?}", UnlockRequest { unlock_key: secret() }),
            format!("{:?}", EnterResponse { unlock_key: secret().into_bytes(), ..EnterResponse::default() }),
            format!("{:?}", Cluster { unlock_key: secret().into_bytes(), ..Cluster::default() }),
            format!(
                "{:?}",
                Cluster {
                    root_key_pem: secret().into_bytes(),
                    worker_token_secret: secret().into_bytes(),
                    manager_token_secret: secret().into_bytes(),
                    ..Cluster::default()
                }
            ),
        ];
        let bytes = format!("{:?}", SECRET.as_bytes());
        for text in texts {
            assert!(text.contains("<hidden>") && !text.contains(SECRET) && !text.contains(&bytes), "{text}");
        }
    }
}
