//! The two-ended cipher limit: what one core alone seals and opens again, in packets of 1420 bytes. No device that does
//! both ends on one core can be faster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_noise::{RateLimiter, TimerSettings, Tunn, TunnResult, x25519};

const PACKET: usize = 1420;
const PACKETS: u32 = 200_000;

/// What was measured.
pub(super) struct Limit {
    /// By the CPU time of the thread: what other load takes does not count.
    pub(super) gbits: f64,
    /// CPU time by wall time: how much of a core one busy thread gets on this machine now.
    pub(super) share: f64,
}

/// Measures it, in about half a second.
pub(super) fn limit() -> Result<Limit> {
    let (mut a, mut b) = tunnels()?;
    let mut buffer = [0; 256];
    let now = Duration::from_secs(1);
    let mut message = message(a.format_handshake_initiation(&mut buffer, false, now))?;
    for end in [&mut b, &mut a] {
        message = self::message(end.decapsulate(None, &message, &mut buffer, now))?;
    }
    let sender = a.current_session().context("the handshake gives no session")?.clone();
    let index = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
    let receiver = b.sessions()[index as usize % skep_noise::N_SESSIONS].clone();
    let receiver = receiver.context("the handshake gives one end no session")?;
    let mut packet = [7; PACKET + skep_noise::DATA_OVERHEAD_SZ];
    let (cpu, started) = (thread_time()?, Instant::now());
    for _ in 0..PACKETS {
        let sealed = sender.seal_in_place(sender.reserve(1), &mut packet).is_ok();
        ensure!(sealed && receiver.open_in_place(&mut packet).is_ok(), "a packet is not opened again");
    }
    let (cpu, wall) = ((thread_time()? - cpu).as_secs_f64(), started.elapsed().as_secs_f64());
    Ok(Limit { gbits: f64::from(PACKETS) * PACKET as f64 * 8.0 / cpu / 1e9, share: cpu / wall })
}

fn message(result: TunnResult<'_>) -> Result<Vec<u8>> {
    match result {
        TunnResult::WriteToNetwork(message) => Ok(message.to_vec()),
        other => bail!("the handshake gives {other:?}"),
    }
}

fn tunnels() -> Result<(Tunn, Tunn)> {
    let keys = [skep_noise::random_secret()?, skep_noise::random_secret()?];
    let now = Duration::from_secs(1);
    let tunnel = |ours: usize, theirs: usize| -> Result<Tunn> {
        let limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&keys[ours]), 100, now)?);
        let theirs = x25519::PublicKey::from(&keys[theirs]);
        Ok(Tunn::new(keys[ours].clone(), theirs, None, None, 1, limiter, TimerSettings::default(), now))
    };
    Ok((tunnel(0, 1)?, tunnel(1, 0)?))
}

fn thread_time() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time` only, which lives here.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    ensure!(read == 0, "cannot read the thread's clock: {}", std::io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}
