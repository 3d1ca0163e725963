// Copyright (c) 2019 Cloudflare, Inc. All rights reserved.
// SPDX-License-Identifier: BSD-3-Clause

//! When to do what: handshakes again, keepalives, keys that are forgotten (WireGuard's paper, section 6). Called on a clock
//! of the caller's; never looks at one of its own.

use crate::errors::WireGuardError;
use crate::tunn::{N_SESSIONS, Tunn, TunnResult};
use std::mem;
use std::ops::{Index, IndexMut};
use std::time::Duration;

// Some constants, represent time in seconds
// https://www.wireguard.com/papers/wireguard.pdf#page=14
/// The protocol's times. Tests shorten them; everything else uses the default.
#[derive(Debug, Clone, Copy)]
pub struct TimerSettings {
    /// An initiator makes new keys when it sends with keys this old
    pub rekey_after: Duration,
    /// Keys this old are not used any more
    pub reject_after: Duration,
    /// How long an initiation is repeated
    pub rekey_attempt: Duration,
    /// How often it is repeated
    pub rekey_timeout: Duration,
    /// After receiving, something is sent within this time
    pub keepalive_timeout: Duration,
    /// How long a cookie is good
    pub cookie_expiration: Duration,
}

impl Default for TimerSettings {
    fn default() -> Self {
        TimerSettings {
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            rekey_attempt: Duration::from_secs(90),
            rekey_timeout: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
            cookie_expiration: Duration::from_secs(120),
        }
    }
}

/// When packets of a session that was used outside the tunnel's lock were last sealed and opened; zero for never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Any packet was sealed
    pub sent: Duration,
    /// A packet with content was sealed
    pub data_sent: Duration,
    /// Any packet was opened
    pub received: Duration,
    /// A packet with content was opened
    pub data_received: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum TimerName {
    /// Time when last handshake was completed
    TimeSessionEstablished,
    /// Time the last attempt for a new handshake began
    TimeLastHandshakeStarted,
    /// Time we last received and authenticated a packet
    TimeLastPacketReceived,
    /// Time we last send a packet
    TimeLastPacketSent,
    /// Time we last received and authenticated a DATA packet
    TimeLastDataPacketReceived,
    /// Time we last send a DATA packet
    TimeLastDataPacketSent,
    /// Time we last received a cookie
    TimeCookieReceived,
    /// Time we last sent persistent keepalive
    TimePersistentKeepalive,
    Top,
}

use self::TimerName::*;

#[derive(Debug)]
pub(crate) struct Timers {
    /// Is the owner of the timer the initiator or the responder for the last handshake?
    is_initiator: bool,
    pub(crate) settings: TimerSettings,
    timers: [Duration; Top as usize],
    pub(super) session_timers: [Duration; N_SESSIONS],
    /// Did we receive data without sending anything back?
    want_keepalive: bool,
    /// Did we send data without hearing back?
    want_handshake: bool,
    persistent_keepalive: usize,
}

impl Timers {
    pub(crate) fn new(persistent_keepalive: Option<u16>, settings: TimerSettings, now: Duration) -> Timers {
        Timers {
            is_initiator: false,
            settings,
            timers: [now; Top as usize],
            session_timers: [now; N_SESSIONS],
            want_keepalive: Default::default(),
            want_handshake: Default::default(),
            persistent_keepalive: usize::from(persistent_keepalive.unwrap_or(0)),
        }
    }

    fn is_initiator(&self) -> bool {
        self.is_initiator
    }

    // We don't really clear the timers, but we set them to the current time to
    // so the reference time frame is the same
    pub(crate) fn clear(&mut self, now: Duration) {
        for t in &mut self.timers[..] {
            *t = now;
        }
        self.want_handshake = false;
        self.want_keepalive = false;
    }
}

impl Index<TimerName> for Timers {
    type Output = Duration;
    fn index(&self, index: TimerName) -> &Duration {
        &self.timers[index as usize]
    }
}

impl IndexMut<TimerName> for Timers {
    fn index_mut(&mut self, index: TimerName) -> &mut Duration {
        &mut self.timers[index as usize]
    }
}

impl Tunn {
    pub(crate) fn timer_tick(&mut self, timer_name: TimerName, now: Duration) {
        match timer_name {
            TimeLastPacketReceived => {
                self.timers.want_keepalive = true;
                self.timers.want_handshake = false;
            }
            TimeLastPacketSent => {
                self.timers.want_handshake = true;
                self.timers.want_keepalive = false;
            }
            _ => {}
        }

        self.timers[timer_name] = now;
    }

    /// Takes over what happened outside the tunnel's lock since the last call, before [`Self::update_timers`].
    pub fn note_traffic(&mut self, traffic: &Traffic) {
        let mut events = [
            (TimeLastPacketSent, traffic.sent),
            (TimeLastDataPacketSent, traffic.data_sent),
            (TimeLastPacketReceived, traffic.received),
            (TimeLastDataPacketReceived, traffic.data_received),
        ];
        events.sort_by_key(|(_, at)| *at);
        for (name, at) in events {
            if at > self.timers[name] {
                self.timer_tick(name, at);
            }
        }
    }

    /// Whether nothing is to be done until something is sent or arrives.
    pub fn is_idle(&self) -> bool {
        self.timers.persistent_keepalive == 0
            && !self.handshake.is_in_progress()
            && self.sessions.iter().all(Option::is_none)
    }

    /// Changes the keepalive interval in seconds; `None` for no keepalives.
    pub fn set_persistent_keepalive(&mut self, seconds: Option<u16>) {
        self.timers.persistent_keepalive = usize::from(seconds.unwrap_or(0));
    }

    pub(super) fn timer_tick_session_established(&mut self, is_initiator: bool, session_idx: usize, now: Duration) {
        self.timer_tick(TimeSessionEstablished, now);
        self.timers.session_timers[session_idx % N_SESSIONS] = now;
        self.timers.is_initiator = is_initiator;
    }

    // We don't really clear the timers, but we set them to the current time to
    // so the reference time frame is the same
    fn clear_all(&mut self, now: Duration) {
        for session in &mut self.sessions {
            *session = None;
        }
        self.generation += 1;

        self.packet_queue.clear();

        self.timers.clear(now);
    }

    fn update_session_timers(&mut self, time_now: Duration) {
        let timers = &mut self.timers;
        let reject_after = timers.settings.reject_after;

        for (i, t) in timers.session_timers.iter_mut().enumerate() {
            if time_now.saturating_sub(*t) > reject_after {
                if let Some(session) = self.sessions[i].take() {
                    self.generation += 1;
                    tracing::debug!(message = "SESSION_EXPIRED(REJECT_AFTER_TIME)", session = session.receiving_index);
                }
                *t = time_now;
            }
        }
    }

    /// Does what is due: repeats or begins handshakes, sends keepalives, forgets keys. To be called a few times a second.
    pub fn update_timers<'a>(&mut self, dst: &'a mut [u8], now: Duration) -> TunnResult<'a> {
        let mut handshake_initiation_required = false;
        let mut keepalive_required = false;

        self.update_session_timers(now);
        let settings = self.timers.settings;

        // Load timers only once:
        let session_established = self.timers[TimeSessionEstablished];
        let handshake_started = self.timers[TimeLastHandshakeStarted];
        let aut_packet_received = self.timers[TimeLastPacketReceived];
        let aut_packet_sent = self.timers[TimeLastPacketSent];
        let data_packet_received = self.timers[TimeLastDataPacketReceived];
        let data_packet_sent = self.timers[TimeLastDataPacketSent];
        let persistent_keepalive = self.timers.persistent_keepalive;

        {
            if self.handshake.is_expired() {
                return TunnResult::Err(WireGuardError::ConnectionExpired);
            }

            // Clear cookie after COOKIE_EXPIRATION_TIME
            if self.handshake.has_cookie()
                && now.saturating_sub(self.timers[TimeCookieReceived]) >= settings.cookie_expiration
            {
                self.handshake.clear_cookie();
            }

            // All ephemeral private keys and symmetric session keys are zeroed out after
            // (REJECT_AFTER_TIME * 3) ms if no new keys have been exchanged.
            if now.saturating_sub(session_established) >= settings.reject_after * 3 {
                tracing::debug!("CONNECTION_EXPIRED(REJECT_AFTER_TIME * 3)");
                self.handshake.set_expired();
                self.clear_all(now);
                return TunnResult::Err(WireGuardError::ConnectionExpired);
            }

            if let Some(time_init_sent) = self.handshake.timer() {
                // Handshake Initiation Retransmission
                if now.saturating_sub(handshake_started) >= settings.rekey_attempt {
                    // After REKEY_ATTEMPT_TIME ms of trying to initiate a new handshake,
                    // the retries give up and cease, and clear all existing packets queued
                    // up to be sent. If a packet is explicitly queued up to be sent, then
                    // this timer is reset.
                    tracing::debug!("CONNECTION_EXPIRED(REKEY_ATTEMPT_TIME)");
                    self.handshake.set_expired();
                    self.clear_all(now);
                    return TunnResult::Err(WireGuardError::ConnectionExpired);
                }

                if now.saturating_sub(time_init_sent) >= settings.rekey_timeout {
                    // A handshake initiation is retried after REKEY_TIMEOUT + jitter ms,
                    // if a response has not been received, where jitter is some random
                    // value between 0 and 333 ms.
                    tracing::debug!("HANDSHAKE(REKEY_TIMEOUT)");
                    handshake_initiation_required = true;
                }
            } else {
                if self.timers.is_initiator() {
                    // After sending a packet, if the sender was the original initiator
                    // of the handshake and if the current session key is REKEY_AFTER_TIME
                    // ms old, we initiate a new handshake. If the sender was the original
                    // responder of the handshake, it does not re-initiate a new handshake
                    // after REKEY_AFTER_TIME ms like the original initiator does.
                    if session_established < data_packet_sent
                        && now.saturating_sub(session_established) >= settings.rekey_after
                    {
                        tracing::debug!("HANDSHAKE(REKEY_AFTER_TIME (on send))");
                        handshake_initiation_required = true;
                    }

                    // After receiving a packet, if the receiver was the original initiator
                    // of the handshake and if the current session key is REJECT_AFTER_TIME
                    // - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT ms old, we initiate a new
                    // handshake.
                    if session_established < data_packet_received
                        && now.saturating_sub(session_established)
                            >= settings.reject_after - settings.keepalive_timeout - settings.rekey_timeout
                    {
                        tracing::debug!(
                            "HANDSHAKE(REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - \
                        REKEY_TIMEOUT \
                        (on receive))"
                        );
                        handshake_initiation_required = true;
                    }
                }

                // If we have sent a packet to a given peer but have not received a
                // packet after from that peer for (KEEPALIVE + REKEY_TIMEOUT) ms,
                // we initiate a new handshake.
                if data_packet_sent > aut_packet_received
                    && now.saturating_sub(aut_packet_received) >= settings.keepalive_timeout + settings.rekey_timeout
                    && mem::replace(&mut self.timers.want_handshake, false)
                {
                    tracing::debug!("HANDSHAKE(KEEPALIVE + REKEY_TIMEOUT)");
                    handshake_initiation_required = true;
                }

                if !handshake_initiation_required {
                    // If a packet has been received from a given peer, but we have not sent one back
                    // to the given peer in KEEPALIVE ms, we send an empty packet.
                    if data_packet_received > aut_packet_sent
                        && now.saturating_sub(aut_packet_sent) >= settings.keepalive_timeout
                        && mem::replace(&mut self.timers.want_keepalive, false)
                    {
                        tracing::debug!("KEEPALIVE(KEEPALIVE_TIMEOUT)");
                        keepalive_required = true;
                    }

                    // Persistent KEEPALIVE
                    if persistent_keepalive > 0
                        && (now.saturating_sub(self.timers[TimePersistentKeepalive])
                            >= Duration::from_secs(persistent_keepalive as _))
                    {
                        tracing::debug!("KEEPALIVE(PERSISTENT_KEEPALIVE)");
                        self.timer_tick(TimePersistentKeepalive, now);
                        keepalive_required = true;
                    }
                }
            }
        }

        if handshake_initiation_required {
            return self.format_handshake_initiation(dst, true, now);
        }

        if keepalive_required {
            return self.encapsulate(&[], dst, now);
        }

        TunnResult::Done
    }

    /// When the current session was made, if there is one.
    pub fn last_handshake(&self) -> Option<Duration> {
        self.sessions[self.current % N_SESSIONS].as_ref().map(|_| self.timers[TimeSessionEstablished])
    }

    pub fn persistent_keepalive(&self) -> Option<u16> {
        let keepalive = self.timers.persistent_keepalive;

        if keepalive > 0 { Some(keepalive as u16) } else { None }
    }
}
