//! Removes images that nobody used for long, so that a node's disk does not fill with old versions.
//!
//! One tokio task, owned by the executor; on cancel it stops between two rounds, on error it logs and tries again later.
//! What a task uses is pinned in the store, so it is never at risk here.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_image::{Policy, Store};

/// When images go by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// Between two looks.
    pub period: Duration,
    /// Images that came for tasks (without a tag) and were not used for this long go.
    pub unused_for: Duration,
    /// Below this share of free space on the disk, in percent, ...
    pub low_disk_percent: u8,
    /// ... images with tags go too if they were not used for this long.
    pub low_disk_unused_for: Duration,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(600),
            unused_for: Duration::from_secs(24 * 3600),
            low_disk_percent: 15,
            low_disk_unused_for: Duration::from_secs(3600),
        }
    }
}

/// What may go now. `free_percent` `None`: the disk did not say. Pure.
pub fn policy_now(policy: &GcPolicy, free_percent: Option<u8>) -> Policy {
    let low = free_percent.is_some_and(|free| free < policy.low_disk_percent);
    Policy {
        named: low,
        unused_for: if low { policy.low_disk_unused_for.min(policy.unused_for) } else { policy.unused_for },
        until_bytes: None,
    }
}

/// Looks now and then, for ever. `dir` is on the store's disk.
pub(crate) async fn run(store: Store, dir: std::path::PathBuf, policy: GcPolicy) {
    let mut timer = tokio::time::interval(policy.period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once, when tasks may still be taken over.
    timer.tick().await;
    loop {
        timer.tick().await;
        let free = free_percent(&dir);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match store.prune(&policy_now(&policy, free), &HashSet::new(), now).await {
            Ok(removed) if removed.deleted.is_empty() && removed.freed_bytes == 0 => {}
            Ok(removed) => tracing::info!(
                images = removed.deleted.len(),
                freed_bytes = removed.freed_bytes,
                free_percent = free,
                "removed images that were not used for long"
            ),
            Err(error) => tracing::warn!(error = %crate::executor::chain(&error), "cannot remove unused images"),
        }
    }
}

/// Free space in percent of the file system that holds `dir` (statvfs(3)).
fn free_percent(dir: &Path) -> Option<u8> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, for which all zeroes is valid.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut info) } != 0 || info.f_blocks == 0 {
        return None;
    }
    u8::try_from(info.f_bavail.saturating_mul(100) / info.f_blocks).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tagged_images_go_only_when_the_disk_is_low() {
        let policy = GcPolicy::default();
        let usual = policy_now(&policy, Some(50));
        assert!(!usual.named && usual.unused_for == policy.unused_for);
        assert_eq!(policy_now(&policy, None), usual);
        let low = policy_now(&policy, Some(14));
        assert!(low.named && low.unused_for == policy.low_disk_unused_for);
    }

    #[test]
    fn the_disk_is_asked() {
        assert!(free_percent(Path::new("/")).is_some_and(|free| free <= 100));
        assert_eq!(free_percent(Path::new("/no/such/folder")), None);
    }
}
