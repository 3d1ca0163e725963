//! `create` and `renew`: a key is made here and never leaves; the managers sign a request for it. What a person needs goes
//! into one file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use skep_identity::ClientKey;
use skep_proto::v1::{ClientRole, CreateClientRequest, CreateClientResponse, RenewClientRequest};
use skep_proto::validate;

use super::RoleName;
use crate::client::write;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::output;
use crate::parse::duration;
use crate::remote::bundle::Bundle;
use crate::remote::store::write_new;
use crate::view;

/// What the file is to be.
#[derive(Args, Clone, Debug)]
struct FileFlags {
    /// Life of the certificate, at least 1h [default: 2160h].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    expiry: Option<Duration>,
    /// File to write, or directory for NAME.skep; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = ".")]
    output: String,
}

impl FileFlags {
    /// 0 is the default on the wire, which nobody means who writes it.
    fn expiry_ms(&self) -> i64 {
        self.expiry.map_or(0, |expiry| duration::millis(expiry).max(1))
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// What the client may do.
    #[arg(long, value_enum)]
    role: RoleName,
    #[command(flatten)]
    file: FileFlags,
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RenewArgs {
    #[command(flatten)]
    file: FileFlags,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) async fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    validate::name("name", &args.name)?;
    let draft = Draft::make(&args.file, &args.name)?;
    let request = CreateClientRequest {
        name: args.name.clone(),
        role: ClientRole::from(args.role).into(),
        csr_pem: draft.csr_pem()?,
        cert_expiry_ms: args.file.expiry_ms(),
        write: None,
    };
    let made = async {
        let client = context.connect().await?;
        let call = |options| {
            let request = CreateClientRequest { write: Some(options), ..request.clone() };
            let mut people = client.people();
            async move { people.create(request).await }
        };
        Ok::<_, Failure>(write(call).await?)
    };
    let hint = "take it where it is used, and run `skep context create NAME --bundle";
    draft.finish(made.await, args.role.into(), hint)
}

pub(super) async fn renew(context: &Context, args: &RenewArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let person = super::get(&client, &args.name).await?;
    // It becomes the name of a file.
    validate::name("name", &person.name)?;
    let draft = Draft::make(&args.file, &person.name)?;
    let request = RenewClientRequest {
        // The one whose name is on the file, whoever has the name by then.
        reference: view::id(&person.id),
        csr_pem: draft.csr_pem()?,
        cert_expiry_ms: args.file.expiry_ms(),
        write: None,
    };
    let renewed = write(|options| {
        let request = RenewClientRequest { write: Some(options), ..request.clone() };
        let mut people = client.people();
        async move { people.renew(request).await }
    });
    let renewed = renewed.await.map_err(|status| Failure::from_lookup("client", &args.name, status));
    draft.finish(
        renewed,
        person.role(),
        "take it where the old one is used, and run `skep context update NAME --bundle",
    )
}

/// A person's file to be: the key is there, and so is its place, before the managers are asked. Without a file the key would be
/// lost, and the certificate of no use.
struct Draft {
    name: String,
    key: ClientKey,
    target: Target,
}

impl Draft {
    fn make(flags: &FileFlags, name: &str) -> Result<Self, Failure> {
        let key = ClientKey::generate().map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self { name: name.to_owned(), key, target: Target::make(&flags.output, name)? })
    }

    fn csr_pem(&self) -> Result<String, Failure> {
        self.key.signing_request_pem().map_err(|error| Failure::Internal(error.to_string()))
    }

    /// Writes the file, and prints the id; takes the place back where there is nothing to write.
    fn finish(self, made: Result<CreateClientResponse, Failure>, role: ClientRole, hint: &str) -> Result<(), Failure> {
        let made = made.inspect_err(|_| self.target.forget())?;
        let id = view::id(&made.id);
        let bundle = Bundle::new(made.managers, made.root_cert_pem, made.cert_chain_pem, self.key.to_pem().to_string());
        // It must be good where it is used, so it is tried here.
        let checked = bundle.of(&self.name, role).check();
        let (bundle, _) = checked.map_err(|error| {
            self.target.forget();
            Failure::Internal(format!("the managers' answer is of no use: {error}"))
        })?;
        match &self.target {
            Target::Output => output::data(bundle.to_text()),
            Target::File(path) => {
                write_new(path, bundle.to_text().as_bytes(), true).map_err(|failure| {
                    let name = &self.name;
                    Failure::Failed(format!("{failure}; the key is lost: make another with `skep client renew {name}`"))
                })?;
                output::note(format_args!("wrote {0}: whoever has it is {1}; {hint} {0}`", path.display(), self.name));
                output::data(format!("{id}\n"))
            }
        }
    }
}

/// Where the bundle goes.
enum Target {
    Output,
    File(PathBuf),
}

impl Target {
    /// Makes the file, empty; one that is there is not touched.
    fn make(output: &str, name: &str) -> Result<Self, Failure> {
        if output == "-" {
            return Ok(Self::Output);
        }
        let path = Path::new(output);
        let path = if path.is_dir() { path.join(format!("{name}.skep")) } else { path.to_owned() };
        if path.symlink_metadata().is_ok() {
            return Err(Failure::Usage(format!("{} exists already: name another file with --output", path.display())));
        }
        write_new(&path, &[], false)?;
        Ok(Self::File(path))
    }

    fn forget(&self) {
        if let Self::File(path) = self {
            // It is empty: at worst it is in the way.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_file_is_private_and_none_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::make(dir.path().to_str().unwrap(), "alice").unwrap();
        let path = dir.path().join("alice.skep");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(Target::make(path.to_str().unwrap(), "alice").is_err());
        target.forget();
        assert!(!path.exists());
    }

    #[test]
    fn no_life_is_not_the_default() {
        let flags = |expiry| FileFlags { expiry, output: ".".to_owned() };
        assert_eq!(flags(None).expiry_ms(), 0);
        assert_eq!(
            [flags(Some(Duration::ZERO)).expiry_ms(), flags(Some(Duration::from_secs(2))).expiry_ms()],
            [1, 2_000]
        );
    }
}
