// Copyright (c) 2019 Cloudflare, Inc. All rights reserved.
// SPDX-License-Identifier: BSD-3-Clause

//! Why a message was not accepted or could not be made. Plain values: they say nothing of what was in the message.

/// Why a message was not accepted or could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireGuardError {
    #[error("the buffer is too small")]
    DestinationBufferTooSmall,
    #[error("unexpected message")]
    UnexpectedPacket,
    #[error("no session or handshake has this index")]
    WrongIndex,
    #[error("sent with another key than this peer's")]
    WrongKey,
    #[error("the initiation is not newer than the last one")]
    WrongTai64nTimestamp,
    #[error("wrong message authentication code")]
    InvalidMac,
    #[error("wrong authentication tag")]
    InvalidAeadTag,
    #[error("the counter is too old or was used")]
    InvalidCounter,
    #[error("the counter was seen before")]
    DuplicateCounter,
    #[error("not a WireGuard message, or not an IP packet inside")]
    InvalidPacket,
    #[error("no session")]
    NoCurrentSession,
    #[error("no answer for too long; waiting for something to send")]
    ConnectionExpired,
    #[error("too many handshakes")]
    UnderLoad,
    #[error("the system gives no random numbers")]
    NoRandomNumbers,
}
