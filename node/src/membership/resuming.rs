//! A start of the daemon: the membership that its data directory holds is resumed, or waits for the unlock key.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use skep_identity::{Credentials, StoreError, UnlockKey};
use skep_proto::v1::SwarmState;
use tracing::{info, warn};

use super::{FIRST_SESSION, MemberGuard, Membership, REMOVED, Record, blocking};
use crate::backoff::{Backoff, is_disk_full, may_pass, words};
use crate::sealing::Sealing;
use crate::seat::{First, SeatState};

/// How late a wrong unlock key is answered; nobody else is heard meanwhile. A key has 256 bits: this is not what keeps a
/// guesser out.
const WRONG_KEY: Duration = Duration::from_secs(1);

impl Membership {
    /// Resumes, in a task of its own, the membership that the data directory holds, if any. Transitions wait for it.
    pub(crate) fn start(&self) {
        let this = self.own.upgrade().expect("it is called through an Arc");
        let first = Arc::clone(&self.member).try_lock_owned().expect("nobody has been let in yet");
        tokio::spawn(async move { this.resume(first).await });
    }

    /// Tries until it works, or fails for a reason that stays; an error leaves the daemon up and says why.
    async fn resume(&self, first: MemberGuard) {
        let (mut member, mut backoff) = (first, Backoff::default());
        let mut stopping = self.stopping.subscribe();
        loop {
            if *stopping.borrow() || member.is_some() || self.standing().state == SwarmState::Inactive {
                return;
            }
            let Err(error) = self.resume_once(&mut member).await else { return };
            let passing = may_pass(&error);
            let message = match is_disk_full(&error) {
                true => format!("this node's disk is full: {}; make space, and it goes on by itself", words(&error)),
                false => format!("this node's swarm state cannot be used: {}", words(&error)),
            };
            warn!(error = %message, passing, "this host is not back in its swarm");
            self.board.failed(message, passing);
            if !passing {
                return;
            }
            drop(member);
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
            member = Arc::clone(&self.member).lock_owned().await;
        }
    }

    async fn resume_once(&self, member: &mut MemberGuard) -> anyhow::Result<()> {
        let dir = self.host.identity_dir();
        let loaded = blocking(move || {
            if let Err(error) = skep_identity::sweep(&dir) {
                warn!(error = %format!("{:#}", anyhow::Error::new(error)), "a key that was replaced is still on the disk");
            }
            Credentials::load(&dir)
        });
        let credentials = match loaded.await? {
            Ok(credentials) => credentials,
            Err(StoreError::Sealed { .. }) => return self.lock().await,
            Err(error) if error.is_absent() => {
                self.host.clear_leftovers().await;
                self.board.outside();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let path = self.host.swarm_file();
        let record = blocking(move || Record::load(&path)).await??;
        if record.removed {
            self.host.clear_leftovers().await;
            self.board.failed(REMOVED.to_owned(), false);
            return Ok(());
        }
        let sealing = Sealing::new(self.host.identity_dir(), None, Vec::new());
        self.run(member, credentials, record, First::Resume, sealing).await
    }

    /// This host's keys are sealed: containers and netd go on by themselves, and nothing else happens before somebody has
    /// the unlock key.
    async fn lock(&self) -> anyhow::Result<()> {
        let (dir, path) = (self.host.identity_dir(), self.host.swarm_file());
        let (identity, record) = blocking(move || (Credentials::whose(&dir), Record::load(&path))).await?;
        let (identity, record) = (identity?, record?);
        if record.removed {
            self.host.clear_leftovers().await;
            self.board.failed(REMOVED.to_owned(), false);
            return Ok(());
        }
        info!(node = %identity.node_id, "this manager is locked: unlock it with `skep swarm unlock`");
        self.board.locked(&identity, record.advertise_addr.ip().to_string());
        Ok(())
    }

    /// Unlocks this manager and resumes its membership; returns when it takes part, or is late.
    pub(crate) async fn unlock(&self, text: &str) -> anyhow::Result<()> {
        let mut member = self.transition().await?;
        match self.standing().state {
            SwarmState::Locked => {}
            SwarmState::Inactive => bail!("this node is not part of a swarm"),
            _ => bail!("swarm is not locked"),
        }
        let (sealing, credentials, record) = match self.open(text).await {
            Ok(opened) => opened,
            Err(error) => {
                tokio::time::sleep(WRONG_KEY).await;
                warn!(error = %words(&error), "somebody tried to unlock this manager");
                return Err(error);
            }
        };
        if let Err(error) = self.run(&mut member, credentials, record, First::Resume, sealing).await {
            // For the next try.
            self.lock().await?;
            return Err(error);
        }
        info!("this manager is unlocked");
        let seat = member.as_ref().map(|member| member.seat.state());
        // From here on it is a member, which may leave or be stopped while it waits for a leader.
        drop(member);
        if let Some(mut seat) = seat {
            // Late is no error: it goes on trying.
            let _ = tokio::time::timeout(FIRST_SESSION, seat.wait_for(SeatState::is_settled)).await;
        }
        Ok(())
    }

    /// What the unlock key opens.
    async fn open(&self, text: &str) -> anyhow::Result<(Sealing, Credentials, Record)> {
        let key: UnlockKey = text.parse()?;
        let (dir, path) = (self.host.identity_dir(), self.host.swarm_file());
        let opened = blocking(move || -> anyhow::Result<_> {
            // The key of before, or the next one, where a change was cut short.
            let other = skep_identity::other_keys(&dir, &key)?;
            let keys: Vec<UnlockKey> = std::iter::once(&key).chain(&other).cloned().collect();
            let credentials = Credentials::unlock(&dir, &keys)?;
            Ok((Sealing::new(dir, Some(key), other), credentials, Record::load(&path)?))
        });
        opened.await?.map_err(|error| match error.downcast_ref() {
            Some(StoreError::WrongKey { .. }) => anyhow::anyhow!("invalid key: it does not unlock this manager"),
            _ => error,
        })
    }
}
