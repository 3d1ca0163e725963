//! `image import`: a root file system tar becomes an image of one layer. The archive is kept as it came, compressed or
//! not; the same archive and options give the same digest.

use tokio::io::AsyncRead;

use crate::config::{History, ImageConfig, RootFs, RunConfig};
use crate::images::Images;
use crate::layer::unpack::Unpacked;
use crate::load::{LoadError, descriptor, store_manifest};
use crate::manifest::media;
use crate::pipe::with_reader;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::pull::PullError;
use crate::reference::Reference;
use crate::store::{BlobError, ImageRecord, Store, StoreError, StoredBlob, blocking};

/// What the image says besides its content.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its name. `None`: it is known by its digest alone.
    pub name: Option<Reference>,
    /// How it runs: see [`crate::change`] for Dockerfile instructions.
    pub config: RunConfig,
    /// A line in its history.
    pub message: Option<String>,
    /// When it was made, in seconds since 1970. `None` leaves it out, and the digest depends on the content alone.
    pub created: Option<u64>,
    /// What it runs on. `None`: this machine's platform.
    pub platform: Option<Platform>,
}

impl Images {
    /// Imports a tar archive, plain or compressed with gzip or zstd.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Send,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<ImageRecord, LoadError> {
        let imported = self.import_one(archive, options, progress).await;
        if imported.is_err() {
            let store = self.store().clone();
            blocking::<_, StoreError>(move || store.collect()).await?;
        }
        imported
    }

    async fn import_one(
        &self,
        archive: impl AsyncRead + Send,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<ImageRecord, LoadError> {
        let store = self.store().clone();
        let layer = with_reader(archive, move |mut reader| copy_blob(&store, &mut reader)).await?;
        let (unpacked, _pin) = self.store().unpack_unknown(layer.digest).await.map_err(PullError::from)?;
        if unpacked.entries == 0 {
            return Err(LoadError::Empty);
        }
        let names = options.name.iter().cloned().collect();
        let (store, size) = (self.store().clone(), layer.size);
        let digest = layer.digest;
        let manifest = blocking(move || {
            let config =
                serde_json::to_vec(&config(&options, &unpacked)).map_err(|error| LoadError::Json(error.to_string()))?;
            let config = store.put_document(&config, None).map_err(blob_error)?;
            let layer = descriptor(unpacked.compression.layer_media_type(), digest, size);
            let manifest =
                store_manifest(&store, descriptor(media::OCI_CONFIG, config.digest, config.size), vec![layer])?;
            // The pins go with the record that `adopt` writes.
            Ok::<_, LoadError>((manifest, config))
        })
        .await?;
        Ok(self.adopt(manifest.0.digest, names, progress).await?)
    }
}

fn copy_blob(store: &Store, reader: &mut impl std::io::Read) -> Result<StoredBlob, LoadError> {
    let mut writer = store.blob_writer(None)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer).map_err(LoadError::Read)? {
            0 => return writer.finish().map_err(blob_error),
            count => writer.write(&buffer[..count]).map_err(blob_error)?,
        }
    }
}

fn blob_error(source: BlobError) -> LoadError {
    match source {
        BlobError::Store(error) => LoadError::Store(error),
        source => LoadError::Blob { path: "the archive".to_owned(), source },
    }
}

fn config(options: &ImportOptions, unpacked: &Unpacked) -> ImageConfig {
    let created = options.created.map(rfc3339);
    ImageConfig {
        created: created.clone(),
        author: None,
        platform: options.platform.clone().unwrap_or_else(Platform::host),
        config: options.config.clone(),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![unpacked.diff_id] },
        history: vec![History { created, comment: options.message.clone(), ..History::default() }],
    }
}

/// `2001-09-09T01:46:40Z`. Days to date by Howard Hinnant's `civil_from_days`.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_000_000_000), "2001-09-09T01:46:40Z");
        assert_eq!(rfc3339(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
    }
}
