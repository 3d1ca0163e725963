//! The requests to one repository with one set of credentials: scheme, authentication, answers turned into errors that a
//! user understands. Private to the registry module. Never sends credentials but to the registry itself and to the token
//! server that it names, and never logs them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::auth::{Challenge, RegistryAuth, parse_challenge};
use super::{Inner, Scheme, small_body};
use crate::digest::Digest;
use crate::manifest::media;
use crate::reference::{DEFAULT_DOMAIN, Reference};
use crate::source::{BlobKind, BlobRequest, BlobStream, FetchError};

/// Where Docker Hub's registry really is.
const HUB_HOST: &str = "registry-1.docker.io";
/// Tries for a document by tag when the registry is busy.
const ATTEMPTS: u32 = 3;

pub(super) struct Session {
    registry: Arc<Inner>,
    reference: Reference,
    auth: RegistryAuth,
    /// The `Authorization` value that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    pub(super) fn new(registry: Arc<Inner>, reference: &Reference, auth: RegistryAuth) -> Self {
        Self { registry, reference: reference.clone(), auth, authorization: Mutex::default() }
    }

    pub(super) fn describe(&self) -> String {
        format!("registry {}", self.reference.domain())
    }

    fn image(&self) -> String {
        format!("image \"{}\"", self.reference)
    }

    /// Fetches the manifest or index that a tag names; its digest is that of the bytes.
    pub(super) async fn manifest_by_tag(&self, tag: &str) -> Result<(Digest, Vec<u8>), FetchError> {
        let mut attempt = 1;
        loop {
            match self.try_manifest_by_tag(tag).await {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(200) * attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn try_manifest_by_tag(&self, tag: &str) -> Result<(Digest, Vec<u8>), FetchError> {
        let response = self.get(&format!("manifests/{tag}"), &media::ACCEPT.join(", "), 0).await?;
        let response = self.expect_success(response, || self.image()).await?;
        let header = response.headers().get("docker-content-digest").cloned();
        let idle = self.registry.config.timeouts.idle;
        // The whole of a small document must come within the time that silence is borne.
        let body = timeout(idle, small_body(response)).await.map_err(|_| self.silent(idle))?;
        let bytes = body
            .map_err(|error| self.broken(&error))?
            .ok_or_else(|| self.malformed("a manifest of more than 4 MiB"))?;
        let digest = Digest::of(&bytes);
        let stated = header.as_ref().and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<Digest>().ok());
        match stated {
            Some(stated) if stated != digest => {
                Err(self.malformed(&format!("wrong digest: it says {stated}, the manifest has {digest}")))
            }
            _ => Ok((digest, bytes)),
        }
    }

    /// See [`crate::source::BlobSource::fetch`].
    pub(super) async fn fetch(&self, request: BlobRequest) -> Result<BlobStream, FetchError> {
        let (path, accept) = match request.kind {
            BlobKind::Manifest => (format!("manifests/{}", request.digest), media::ACCEPT.join(", ")),
            BlobKind::Blob => (format!("blobs/{}", request.digest), "*/*".to_owned()),
        };
        let response = self.get(&path, &accept, request.offset).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // The blob there is not longer than what we have: the engine will find it truncated.
            return Ok(BlobStream { offset: request.offset, bytes: futures::stream::empty().boxed() });
        }
        let what = || match request.kind {
            BlobKind::Manifest => self.image(),
            BlobKind::Blob => format!("blob {} of {}", request.digest, self.image()),
        };
        let response = self.expect_success(response, what).await?;
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                content_range_start(&response).ok_or_else(|| self.malformed("a part of a blob without saying which"))?
            }
            _ => 0,
        };
        let place = self.describe();
        let bytes = response.bytes_stream().map(move |piece| {
            piece.map_err(|error| FetchError::Interrupted { source_name: place.clone(), reason: innermost(&error) })
        });
        Ok(BlobStream { offset, bytes: bytes.boxed() })
    }

    /// One GET, with authentication if the registry asks for it.
    async fn get(&self, path: &str, accept: &str, offset: u64) -> Result<Response, FetchError> {
        let build = |client: &reqwest::Client, base: &str, authorization: Option<HeaderValue>| {
            let url = format!("{base}/v2/{}/{path}", self.reference.path());
            let mut request = client.get(url).header(ACCEPT, accept);
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            match authorization {
                Some(value) => request.header(AUTHORIZATION, value),
                None => request,
            }
        };
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (response, scheme) = self.send_any(&build, known).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // Nothing was shown yet, or the token has expired.
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| parse_challenge(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let Some(authorization) = self.answer(challenge, scheme).await? else { return Ok(response) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        self.send_any(&build, Some(authorization)).await.map(|(response, _)| response)
    }

    /// Sends by the first scheme that the registry speaks.
    async fn send_any(
        &self,
        build: &(impl Fn(&reqwest::Client, &str, Option<HeaderValue>) -> RequestBuilder + Sync),
        authorization: Option<HeaderValue>,
    ) -> Result<(Response, Scheme), FetchError> {
        let domain = self.reference.domain();
        let host = if domain == DEFAULT_DOMAIN { HUB_HOST } else { domain };
        let mut failure = None;
        for scheme in self.registry.schemes(domain) {
            let client = self.client(scheme)?;
            let base = match scheme {
                Scheme::Https | Scheme::UnverifiedHttps => format!("https://{host}"),
                Scheme::Http => format!("http://{host}"),
            };
            match self.send(build(client, &base, authorization.clone())).await {
                Ok(response) => {
                    self.registry.remember(domain, scheme);
                    return Ok((response, scheme));
                }
                Err(error @ FetchError::Unreachable { .. }) => {
                    self.registry.forget(domain);
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.unreachable("no way to reach it".to_owned())))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, FetchError> {
        let times = self.registry.config.timeouts;
        let longest = times.connect + times.idle;
        match timeout(longest, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() && error.is_timeout() => Err(self.silent(times.connect)),
            Ok(Err(error)) if error.is_timeout() => Err(self.silent(times.idle)),
            Ok(Err(error)) if error.is_connect() => Err(self.unreachable(innermost(&error))),
            Ok(Err(error)) if error.is_redirect() || error.is_builder() => Err(self.malformed(&innermost(&error))),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(self.silent(longest)),
        }
    }

    fn client(&self, scheme: Scheme) -> Result<&reqwest::Client, FetchError> {
        self.registry.client(scheme).map_err(|reason| self.unreachable(format!("TLS cannot be set up: {reason}")))
    }

    /// What to show for a challenge. `None`: there is nothing (more) to show.
    async fn answer(&self, challenge: Option<Challenge>, scheme: Scheme) -> Result<Option<HeaderValue>, FetchError> {
        let value = match (challenge, &self.auth) {
            (Some(Challenge::Bearer { .. }), RegistryAuth::RegistryToken { token }) => format!("Bearer {token}"),
            (Some(Challenge::Bearer { realm, service, scope }), auth) => {
                let token = self.token(&realm, service, scope, auth, scheme).await?;
                format!("Bearer {token}")
            }
            (Some(Challenge::Basic), RegistryAuth::Password { username, password }) => {
                use base64::Engine as _;
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                format!("Basic {pair}")
            }
            (Some(Challenge::Basic) | None, _) => return Ok(None),
        };
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| self.malformed("a token that no header can carry"))?;
        value.set_sensitive(true);
        let shown_before = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&value);
        Ok((!shown_before).then_some(value))
    }

    /// Gets a token from the registry's token server.
    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        auth: &RegistryAuth,
        scheme: Scheme,
    ) -> Result<String, FetchError> {
        let mut url = Url::parse(realm).map_err(|_| self.malformed("a token server that is not a URL"))?;
        if scheme == Scheme::Https && url.scheme() != "https" {
            return Err(self.malformed("a token server without https"));
        }
        let client = self.client(scheme)?;
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.path()));
        let service = service.unwrap_or_default();
        let request = match auth {
            RegistryAuth::IdentityToken { token } => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", &service),
                    ("scope", &scope),
                    ("client_id", "skep"),
                    ("refresh_token", token),
                ];
                let mut encoder = Url::parse("form:").map_err(|_| self.malformed("no form"))?;
                encoder.query_pairs_mut().extend_pairs(form);
                let body = encoder.query().unwrap_or_default().to_owned();
                client.post(url).header("content-type", "application/x-www-form-urlencoded").body(body)
            }
            _ => {
                url.query_pairs_mut().append_pair("service", &service).append_pair("scope", &scope);
                match auth {
                    RegistryAuth::Password { username, password } => {
                        url.query_pairs_mut().append_pair("account", username);
                        client.get(url).basic_auth(username, Some(password))
                    }
                    _ => client.get(url),
                }
            }
        };
        let response = self.send(request).await?;
        let response = match response.status() {
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.unauthorized());
            }
            _ => self.expect_success(response, || self.image()).await?,
        };
        let idle = self.registry.config.timeouts.idle;
        let body = timeout(idle, small_body(response)).await.map_err(|_| self.silent(idle))?;
        let body = body.map_err(|error| self.broken(&error))?;
        let token = body.and_then(|bytes| token_in(&bytes));
        token.ok_or_else(|| self.malformed("no token from its token server"))
    }

    async fn expect_success(&self, response: Response, what: impl Fn() -> String) -> Result<Response, FetchError> {
        let status = response.status();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(FetchError::NotFound { what: what(), place: "its registry".to_owned() }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized()),
            StatusCode::TOO_MANY_REQUESTS => Err(FetchError::Busy {
                source_name: self.describe(),
                reason: "too many requests (HTTP 429)".to_owned(),
            }),
            _ => {
                let detail = error_message(response).await;
                let reason = format!("HTTP {}{detail}", status.as_u16());
                match status.is_server_error() {
                    true => Err(FetchError::Busy { source_name: self.describe(), reason }),
                    false => Err(self.malformed(&reason)),
                }
            }
        }
    }

    fn unauthorized(&self) -> FetchError {
        let detail = match self.auth.is_anonymous() {
            true => "its registry wants credentials, or it does not exist; log in and use --with-registry-auth",
            false => "its registry refused the credentials",
        };
        FetchError::Unauthorized { what: self.image(), detail: detail.to_owned() }
    }

    fn unreachable(&self, reason: String) -> FetchError {
        FetchError::Unreachable { source_name: self.describe(), reason }
    }

    fn silent(&self, waited: Duration) -> FetchError {
        FetchError::Timeout { source_name: self.describe(), seconds: waited.as_secs() }
    }

    fn broken(&self, error: &reqwest::Error) -> FetchError {
        FetchError::Interrupted { source_name: self.describe(), reason: innermost(error) }
    }

    fn malformed(&self, reason: &str) -> FetchError {
        FetchError::Malformed { source_name: self.describe(), reason: reason.to_owned() }
    }
}

/// The innermost reason of an error chain: `Connection refused (os error 111)`.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn content_range_start(response: &Response) -> Option<u64> {
    range_start(response.headers().get(CONTENT_RANGE)?.to_str().ok()?)
}

/// The start of `bytes 100-199/200`.
pub(crate) fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The token in a token server's answer.
pub(crate) fn token_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.token.or(answer.access_token).filter(|token| !token.is_empty())
}

/// `: message` of the registry's error envelope; empty if there is none.
async fn error_message(response: Response) -> String {
    let body = timeout(Duration::from_secs(5), small_body(response)).map(Result::ok).await;
    let message = body.and_then(Result::ok).flatten().and_then(|bytes| refusal_in(&bytes));
    message.map_or_else(String::new, |message| format!(": {message}"))
}

/// The first message of a registry's error envelope, shortened.
pub(crate) fn refusal_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        message: String,
    }
    let envelope: Envelope = serde_json::from_slice(body).ok()?;
    let message = envelope.errors.into_iter().next()?.message;
    (!message.is_empty()).then(|| message.chars().take(200).collect())
}
