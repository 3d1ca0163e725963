//! `skep image load|import`: a file or standard input, in pieces, to the daemon.

use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use skep_proto::v1::{ImportImageRequest, ImportOptions, LoadImageRequest, LocalImage, Platform};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::progress;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::output;
use crate::parse::platform;

/// Bytes in one message: far below the daemon's limit, large enough to cost little.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read ahead.
const PIECES: usize = 8;

#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// File to read [default: standard input].
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ImportArgs {
    /// Tar of a root file system, also compressed; `-` is standard input.
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Name to give to the image.
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Instruction as in a Dockerfile: CMD, ENTRYPOINT, ENV, USER, WORKDIR, EXPOSE, LABEL, STOPSIGNAL.
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Message for the image's history.
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Platform of what is in it, such as linux/arm64 [default: this host's].
    #[arg(long, value_name = "PLATFORM", value_parser = platform::parse)]
    platform: Option<Platform>,
}

impl LoadArgs {
    /// Prints the name of every image that was loaded.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let source = Source::open(self.input.as_deref())?;
        let client = context.connect().await?;
        let (pieces, reading) = source.pieces();
        let requests = pieces.map(|data| LoadImageRequest { data });
        let result = async {
            let stream = client.images().load(requests).await?.into_inner();
            progress::follow(stream, self.quiet).await.map_err(Failure::of_data)
        };
        let held = finish(result, reading).await?;
        let mut text = String::new();
        for image in &held {
            if image.names.is_empty() {
                text.push_str(&format!("Loaded image ID: {}\n", image.digest));
            }
            text.extend(image.names.iter().map(|name| format!("Loaded image: {name}\n")));
        }
        output::data(text)
    }
}

impl ImportArgs {
    /// Prints the digest of the new image.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let from_stdin = self.file == Path::new("-");
        let source = Source::open((!from_stdin).then_some(self.file.as_path()))?;
        let client = context.connect().await?;
        let options = ImportOptions {
            reference: self.name.clone().unwrap_or_default(),
            changes: self.change.clone(),
            message: self.message.clone(),
            platform: self.platform.clone(),
        };
        let (pieces, reading) = source.pieces();
        let first = tokio_stream::once(ImportImageRequest { options: Some(options), data: Vec::new() });
        let requests = first.chain(pieces.map(|data| ImportImageRequest { options: None, data }));
        let result = async {
            let stream = client.images().import(requests).await?.into_inner();
            progress::follow(stream, false).await.map_err(Failure::of_data)
        };
        let held = finish(result, reading).await?;
        output::data(held.iter().map(|image| format!("{}\n", image.digest)).collect::<String>())
    }
}

/// Why the reader stopped early. It holds the stream's sender, so that the stream does not end: the daemon must not take
/// half an archive for a whole one.
struct Stopped {
    error: std::io::Error,
    _sender: tokio::sync::mpsc::Sender<Vec<u8>>,
}

/// Waits for the call's result; gives the call up, and with it what was sent, if the file cannot be read to its end.
async fn finish(
    call: impl Future<Output = Result<Vec<LocalImage>, Failure>>,
    reading: tokio::sync::oneshot::Receiver<Stopped>,
) -> Result<Vec<LocalImage>, Failure> {
    tokio::select! {
        result = call => result,
        Ok(stopped) = reading => Err(Failure::Failed(format!("cannot read the archive: {}", stopped.error))),
    }
}

/// Where the bytes come from.
struct Source {
    reader: Box<dyn Read + Send>,
}

impl Source {
    /// Opens the file, or takes standard input if it is not a terminal.
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let reader: Box<dyn Read + Send> = match path {
            Some(path) => {
                let failed = |error| Failure::Failed(format!("cannot open {}: {error}", path.display()));
                let file = std::fs::File::open(path).map_err(failed)?;
                if file.metadata().map_err(failed)?.is_dir() {
                    return Err(Failure::Failed(format!("{} is a directory, not an archive", path.display())));
                }
                Box::new(file)
            }
            None if std::io::stdin().is_terminal() => {
                return Err(Failure::Usage(
                    "nothing to read: name a file, or give the archive on standard input".to_owned(),
                ));
            }
            None => Box::new(std::io::stdin()),
        };
        Ok(Self { reader })
    }

    /// Reads on a thread of its own. After an error the stream stops without an end, and the second value says why.
    fn pieces(self) -> (ReceiverStream<Vec<u8>>, tokio::sync::oneshot::Receiver<Stopped>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(PIECES);
        let (failed, reading) = tokio::sync::oneshot::channel();
        let mut reader = self.reader;
        std::thread::spawn(move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                match reader.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece) {
                    Ok(0) => return,
                    // The daemon has seen enough if nobody receives any more.
                    Ok(_) => {
                        if sender.blocking_send(piece).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = failed.send(Stopped { error, _sender: sender });
                        return;
                    }
                }
            }
        });
        (ReceiverStream::new(receiver), reading)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn all_bytes_arrive_in_order() {
        let bytes: Vec<u8> = (0..PIECE_BYTES * 3 + 5).map(|index| (index % 251) as u8).collect();
        let source = Source { reader: Box::new(std::io::Cursor::new(bytes.clone())) };
        let (pieces, mut reading) = source.pieces();
        let pieces: Vec<Vec<u8>> = pieces.collect().await;
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces.concat(), bytes);
        assert!(reading.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_read_error_is_told() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("bad disk"))
            }
        }
        let source = Source { reader: Box::new(Broken) };
        let (pieces, reading) = source.pieces();
        // The call would end with the stream; it must not.
        let call = async {
            let _: Vec<Vec<u8>> = pieces.collect().await;
            Ok(Vec::new())
        };
        let failure = finish(call, reading).await.unwrap_err();
        assert!(failure.to_string().contains("bad disk"));
    }

    #[test]
    fn missing_files_are_named() {
        let failure = Source::open(Some(Path::new("/nonexistent/x.tar"))).err().unwrap();
        assert!(failure.to_string().contains("/nonexistent/x.tar"));
    }
}
