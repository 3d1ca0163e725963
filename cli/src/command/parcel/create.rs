//! `create`, and reading data from where the user has them.

use std::io::{IsTerminal as _, Read};

use clap::Args;

use super::api::{self, Draft, Kind};
use crate::command::context::Context;
use crate::failure::Failure;
use crate::parse::pair;
use crate::{output, view};

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// Label, as NAME=VALUE.
    #[arg(short, long, value_name = "LABEL")]
    label: Vec<String>,
    /// `golang`: fill in placeholders of the data, such as {{.Task.Slot}}, for each container.
    #[arg(long, value_name = "DRIVER")]
    template_driver: Option<String>,
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
    /// File with the data; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: String,
}

/// Makes it and prints its id.
pub(super) async fn run(context: &Context, kind: Kind, args: &CreateArgs) -> Result<(), Failure> {
    let draft = Draft {
        name: args.name.clone(),
        labels: pair::labels(&args.label).map_err(|error| error.of("--label"))?,
        templated: templated(args.template_driver.as_deref())?,
    };
    kind.check(&draft)?;
    let data = read(kind, &args.file)?;
    let client = context.connect().await?;
    let id = api::create(&client, kind, &draft, &data).await?;
    output::data(format!("{}\n", view::id(&id)))
}

fn templated(driver: Option<&str>) -> Result<bool, Failure> {
    match driver {
        None | Some("") => Ok(false),
        Some("golang") => Ok(true),
        Some(other) => Err(Failure::Usage(format!(
            "invalid value for --template-driver: {other:?} is not known: the only one is golang"
        ))),
    }
}

/// The data in a file, or on standard input. No more is read than may be sent.
pub(super) fn read(kind: Kind, file: &str) -> Result<Vec<u8>, Failure> {
    let data = if file == "-" {
        let input = std::io::stdin();
        if input.is_terminal() {
            output::note(format_args!("type the data of the {kind}, then press Ctrl-D on a line of its own"));
        }
        limited(kind, input.lock()).map_err(|error| Failure::Failed(format!("cannot read standard input: {error}")))?
    } else {
        let unreadable = |error: std::io::Error| Failure::Usage(format!("cannot read {file}: {error}"));
        limited(kind, std::fs::File::open(file).map_err(unreadable)?).map_err(unreadable)?
    };
    if data.len() > kind.max_bytes() {
        let limit = kind.max_bytes();
        let message = format!("a {kind} has at most {limit} bytes ({} KiB), and there are more", limit / 1024);
        return Err(Failure::Usage(message));
    }
    kind.check_size(data.len())?;
    Ok(data)
}

/// All there is, or one byte more than is allowed.
fn limited(kind: Kind, from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::new();
    from.take(kind.max_bytes() as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn files_are_read_up_to_the_limit() {
        let file = |bytes: usize| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&vec![b'x'; bytes]).unwrap();
            file
        };
        let read = |kind, bytes| {
            let file = file(bytes);
            read(kind, file.path().to_str().unwrap()).map(|data| data.len()).map_err(|failure| failure.to_string())
        };
        assert_eq!(read(Kind::Secret, 512_000), Ok(512_000));
        assert_eq!(read(Kind::Config, 0), Ok(0));
        let large = read(Kind::Secret, 600_000).unwrap_err();
        assert_eq!(large, "a secret has at most 512000 bytes (500 KiB), and there are more");
        assert!(read(Kind::Secret, 0).unwrap_err().contains("at least one byte"));
        assert!(super::read(Kind::Secret, "/nowhere").unwrap_err().to_string().contains("cannot read /nowhere"));
    }

    #[test]
    fn the_template_driver_is_gos() {
        assert!(templated(Some("golang")).unwrap() && !templated(None).unwrap());
        assert!(templated(Some("jinja")).is_err());
    }
}
