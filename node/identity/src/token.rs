//! Join tokens: `SWMTKN-1-<sha256 of the root certificate, base 36>-<secret, base 36>`, Swarm's own form.
//!
//! Made by the manager (`swarm init`, `join-token --rotate`), read by the joining node. The digest lets that node trust
//! the root before it says the secret. Pure: randomness comes from the caller. Only `Display` shows the secret.

use std::fmt;
use std::str::FromStr;

use skep_proto::id::{from_base36, to_base36};

use crate::roots::{RootBundle, RootCert, RootError};

/// What every token begins with; the number is the version of the form.
const PREFIX: &str = "SWMTKN-1-";
/// Docker's second form, with a third field for FIPS mode.
const DOCKER_V2_PREFIX: &str = "SWMTKN-2-";
/// Base-36 digits of a SHA-256 digest.
const DIGEST_LEN: usize = 50;
/// Base-36 digits of a 16-byte secret.
const SECRET_LEN: usize = 25;

/// What is wrong with a pasted token. No message repeats the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing but white space.
    #[error("the join token is empty: get one with `skep swarm join-token`")]
    Empty,
    /// White space within the token: a line break was pasted along.
    #[error("the join token contains white space: paste it as one word")]
    WhiteSpace,
    /// Docker's `SWMTKN-2` form.
    #[error("this is a join token of version 2, made by Docker: skep's begin with {PREFIX}")]
    DockerV2,
    /// Another beginning.
    #[error("a join token begins with {PREFIX}: get one with `skep swarm join-token`")]
    Prefix,
    /// A part is missing or has the wrong length.
    #[error("the join token is {}: its {part} has {expected} characters, here {found}", cut_or_longer(*.found, *.expected))]
    Length {
        /// `root digest` or `secret`.
        part: &'static str,
        /// Characters that it has.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// More parts than a token has.
    #[error("the join token has something after its secret: copy it again")]
    Trailing,
    /// A character that is not a base-36 digit.
    #[error("the join token's {part} contains {found:?}: it consists of 0-9 and a-z")]
    Character {
        /// `root digest` or `secret`.
        part: &'static str,
        /// The first such character.
        found: char,
    },
    /// The digits stand for a larger number than the part can hold.
    #[error("the join token's {part} is out of range: copy it again")]
    Range {
        /// `root digest` or `secret`.
        part: &'static str,
    },
}

fn cut_or_longer(found: usize, expected: usize) -> &'static str {
    if found < expected { "cut off" } else { "too long" }
}

/// Why a fetched root is not the one that the token speaks of.
#[derive(Debug, thiserror::Error)]
pub enum RootMismatch {
    /// The fetched bytes are no root at all.
    #[error("the manager's root certificate cannot be read")]
    Unreadable(#[source] RootError),
    /// None of the fetched roots has the token's digest.
    #[error(
        "the manager at this address belongs to another cluster than the join token, or someone stands between: \
         the token names root {expected}, the manager showed {found}"
    )]
    Digest {
        /// The digest in the token.
        expected: RootDigest,
        /// The digest of the first root shown.
        found: RootDigest,
    },
}

/// SHA-256 of a root certificate's DER form, printed as 50 base-36 digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootDigest([u8; 32]);

impl RootDigest {
    /// Wraps a digest.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = digest_to_base36(&self.0);
        f.pad(std::str::from_utf8(&digits).expect("base-36 digits are ASCII"))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootDigest({self})")
    }
}

/// A token's 16 secret bytes. Has neither `PartialEq` nor `Display`, so that it is neither compared nor shown by mistake.
#[derive(Clone, Copy)]
pub struct TokenSecret([u8; 16]);

impl TokenSecret {
    /// Wraps 16 bytes of a cryptographic random source.
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// The bytes, to store them.
    pub const fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    /// Compares in a time that does not depend on the bytes.
    pub fn matches(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(&other.0).fold(0u8, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        difference == 0
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(hidden)")
    }
}

/// A join token. `Debug` hides the secret; `Display` prints the whole token, for the one who may see it.
#[derive(Debug, Clone)]
pub struct JoinToken {
    root: RootDigest,
    secret: TokenSecret,
}

impl JoinToken {
    /// Makes the token of a root and a secret.
    pub const fn new(root: RootDigest, secret: TokenSecret) -> Self {
        Self { root, secret }
    }

    /// The digest of the root that admits with this token.
    pub const fn root_digest(&self) -> RootDigest {
        self.root
    }

    /// The secret.
    pub const fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// Whether both admit to the same role of the same cluster. Constant time in the secret.
    pub fn matches(&self, other: &Self) -> bool {
        self.secret.matches(&other.secret) & (self.root == other.root)
    }

    /// Picks, from what an unauthenticated manager showed, the root that this token speaks of. Only with its answer may
    /// a joining node open the connection over which it says the secret.
    pub fn check_root(&self, fetched_pem: &str) -> Result<RootCert, RootMismatch> {
        let bundle = RootBundle::from_pem(fetched_pem).map_err(RootMismatch::Unreadable)?;
        bundle
            .certs()
            .iter()
            .find(|cert| cert.digest() == self.root)
            .cloned()
            .ok_or_else(|| RootMismatch::Digest { expected: self.root, found: bundle.certs()[0].digest() })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = to_base36(u128::from_be_bytes(self.secret.0));
        let secret = std::str::from_utf8(&secret).expect("base-36 digits are ASCII");
        write!(f, "{PREFIX}{}-{secret}", self.root)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Reads a token; white space around it is allowed.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.contains(char::is_whitespace) {
            return Err(TokenError::WhiteSpace);
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            return Err(if text.starts_with(DOCKER_V2_PREFIX) { TokenError::DockerV2 } else { TokenError::Prefix });
        };
        let (digest, secret) = rest.split_once('-').unwrap_or((rest, ""));
        check_digits(digest, "root digest", DIGEST_LEN)?;
        if secret.contains('-') {
            return Err(TokenError::Trailing);
        }
        check_digits(secret, "secret", SECRET_LEN)?;
        let root = digest_from_base36(digest).ok_or(TokenError::Range { part: "root digest" })?;
        let secret = from_base36(secret).ok_or(TokenError::Range { part: "secret" })?;
        Ok(Self::new(RootDigest(root), TokenSecret(secret.to_be_bytes())))
    }
}

fn check_digits(text: &str, part: &'static str, expected: usize) -> Result<(), TokenError> {
    if let Some(found) = text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='z')) {
        return Err(TokenError::Character { part, found });
    }
    let found = text.len();
    if found == expected { Ok(()) } else { Err(TokenError::Length { part, expected, found }) }
}

/// Writes a 256-bit number as 50 digits (36^50 > 2^256), by repeated division.
fn digest_to_base36(digest: &[u8; 32]) -> [u8; DIGEST_LEN] {
    let mut number = *digest;
    let mut out = [b'0'; DIGEST_LEN];
    for slot in out.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let dividend = remainder << 8 | u32::from(*byte);
            *byte = u8::try_from(dividend / 36).expect("a quotient below 256: the remainder is below 36");
            remainder = dividend % 36;
        }
        *slot = b"0123456789abcdefghijklmnopqrstuvwxyz"[remainder as usize];
    }
    out
}

/// Reads 50 checked digits. `None` beyond 256 bits.
fn digest_from_base36(text: &str) -> Option<[u8; 32]> {
    let mut number = [0u8; 32];
    for digit in text.chars() {
        let mut carry = digit.to_digit(36)?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = value.to_be_bytes()[3];
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken::new(RootDigest([0xab; 32]), TokenSecret([0xcd; 16]))
    }

    proptest! {
        #[test]
        fn tokens_round_trip(root: [u8; 32], secret: [u8; 16]) {
            let token = JoinToken::new(RootDigest(root), TokenSecret(secret));
            let text = token.to_string();
            prop_assert_eq!(text.len(), PREFIX.len() + DIGEST_LEN + 1 + SECRET_LEN);
            let read: JoinToken = format!(" {text}\n").parse().unwrap();
            prop_assert!(read.matches(&token));
            prop_assert_eq!(read.secret().expose(), &secret);
            prop_assert_eq!(read.root_digest(), RootDigest(root));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text: String) {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
        }

        #[test]
        fn every_truncation_is_refused(root: [u8; 32], secret: [u8; 16], cut in 0usize..85) {
            let text = JoinToken::new(RootDigest(root), TokenSecret(secret)).to_string();
            prop_assume!(cut < text.len());
            prop_assert!(text[..cut].parse::<JoinToken>().is_err());
        }

        #[test]
        fn one_changed_bit_of_the_secret_does_not_match(secret: [u8; 16], bit in 0usize..128) {
            let mut other = secret;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!TokenSecret(secret).matches(&TokenSecret(other)));
            prop_assert!(TokenSecret(secret).matches(&TokenSecret(secret)));
        }

        #[test]
        fn no_message_repeats_a_long_piece_of_the_token(root: [u8; 32], secret: [u8; 16], extra in "[ A-Z-]{1,4}", at in 9usize..84) {
            let text = JoinToken::new(RootDigest(root), TokenSecret(secret)).to_string();
            let broken = format!("{}{extra}{}", &text[..at], &text[at..]);
            let error = broken.parse::<JoinToken>().unwrap_err().to_string();
            let secret_digits = &text[60..];
            for window in 0..=secret_digits.len() - 6 {
                prop_assert!(!error.contains(&secret_digits[window..window + 6]));
            }
        }
    }

    #[test]
    fn each_mistake_has_its_own_message() {
        let good = token().to_string();
        let cases = [
            (String::new(), TokenError::Empty),
            (" \n".to_owned(), TokenError::Empty),
            (format!("{} {}", &good[..30], &good[30..]), TokenError::WhiteSpace),
            (format!("{}\n{}", &good[..30], &good[30..]), TokenError::WhiteSpace),
            (good.replace("SWMTKN-1-", "SWMTKN-2-1-"), TokenError::DockerV2),
            (good.replace("SWMTKN", "swmtkn"), TokenError::Prefix),
            (good[5..].to_owned(), TokenError::Prefix),
            (good[..40].to_owned(), TokenError::Length { part: "root digest", expected: 50, found: 31 }),
            (good[..59].to_owned(), TokenError::Length { part: "secret", expected: 25, found: 0 }),
            (good[..80].to_owned(), TokenError::Length { part: "secret", expected: 25, found: 20 }),
            (format!("{good}x"), TokenError::Length { part: "secret", expected: 25, found: 26 }),
            (format!("{good}-x"), TokenError::Trailing),
            (good.replacen(&good[9..10], "Q", 1), TokenError::Character { part: "root digest", found: 'Q' }),
            (format!("{}{}", &good[..60], "z".repeat(25)), TokenError::Range { part: "secret" }),
            (format!("{PREFIX}{}-{}", "z".repeat(50), &good[60..]), TokenError::Range { part: "root digest" }),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<JoinToken>().unwrap_err(), expected, "for {text:?}");
        }
        let cut = good[..80].parse::<JoinToken>().unwrap_err().to_string();
        assert_eq!(cut, "the join token is cut off: its secret has 25 characters, here 20");
    }

    #[test]
    fn debug_hides_the_secret() {
        let secret = token().to_string().split_off(60);
        let shown = format!("{:?}", token());
        assert!(shown.contains("hidden") && !shown.contains(&secret) && !shown.contains("205"), "{shown}");
    }

    #[test]
    fn digests_print_like_the_number_they_are() {
        assert_eq!(RootDigest([0; 32]).to_string(), "0".repeat(50));
        let mut one = [0; 32];
        one[31] = 37;
        assert_eq!(RootDigest(one).to_string(), format!("{}11", "0".repeat(48)));
    }
}
