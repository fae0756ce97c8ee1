//! A passphrase made into a secret by argon2id (RFC 9106).
//!
//! The parameters stand in the slot, so that they can grow without a new format. They are bounded
//! both ways on reading: who can write to the place must not be able to make an opener take all the
//! memory or all the time of its host, and a slot weaker than anything this program ever wrote is
//! not one of its own.

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::{CryptoFailed, SALT_BYTES, SECRET_BYTES, Secret, random_salt};

/// 64 MiB and 3 passes are RFC 9106's second recommendation; with one lane, because the lanes would
/// run one after the other here. Measured: about 0.15 s on the machine this was written on.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// The weakest that OWASP lists.
const MEMORY_KIB_MIN: u32 = 19 * 1024;
/// A host that opens a repository can spare this much for a second.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;
/// Memory times passes: what the time follows from. Some ten seconds.
const WORK_KIB_MAX: u64 = 4 * 1024 * 1024;

/// How a passphrase becomes the secret of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretching {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
    pub(crate) salt: [u8; SALT_BYTES],
}

impl Stretching {
    pub(crate) fn new() -> Self {
        Self {
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: random_salt(),
        }
    }

    /// Whether the parameters are within what a slot may ask for.
    pub(crate) fn is_bearable(&self) -> bool {
        let work = u64::from(self.memory_kib) * u64::from(self.passes);
        (MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes)
            && work <= WORK_KIB_MAX
    }

    pub(crate) fn secret(&self, passphrase: &str) -> Result<Secret, CryptoFailed> {
        if !self.is_bearable() {
            return Err(CryptoFailed);
        }
        let parameters = Params::new(self.memory_kib, self.passes, self.lanes, Some(SECRET_BYTES))
            .map_err(|_| CryptoFailed)?;
        let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
            .hash_password_into(passphrase.as_bytes(), &self.salt, secret.as_mut_slice())
            .map_err(|_| CryptoFailed)?;
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretching(memory_kib: u32, passes: u32, lanes: u32) -> Stretching {
        Stretching {
            memory_kib,
            passes,
            lanes,
            salt: [7; SALT_BYTES],
        }
    }

    #[test]
    fn the_secret_follows_from_passphrase_salt_and_parameters() {
        let one = stretching(MEMORY_KIB_MIN, 1, 1);
        let secret = one.secret("correct horse battery staple").unwrap();
        assert_eq!(secret, one.secret("correct horse battery staple").unwrap());
        assert_ne!(secret, one.secret("correct horse battery stapler").unwrap());
        let mut salted = one.clone();
        salted.salt[0] ^= 1;
        assert_ne!(
            secret,
            salted.secret("correct horse battery staple").unwrap()
        );
        let two = stretching(MEMORY_KIB_MIN, 2, 1);
        assert_ne!(secret, two.secret("correct horse battery staple").unwrap());
    }

    #[test]
    fn a_slot_cannot_ask_for_more_than_a_host_can_spare() {
        assert!(Stretching::new().is_bearable());
        for (memory_kib, passes, lanes) in [
            (100 * 1024 * 1024, 1, 1),
            (u32::MAX, u32::MAX, u32::MAX),
            (MEMORY_KIB, u32::MAX, 1),
            (MEMORY_KIB_MAX, PASSES_MAX, 1),
            (MEMORY_KIB, 3, 100_000),
            (8, 1, 1),
            (MEMORY_KIB, 0, 1),
            (MEMORY_KIB, 3, 0),
        ] {
            let hostile = stretching(memory_kib, passes, lanes);
            assert!(!hostile.is_bearable(), "{hostile:?}");
            assert!(hostile.secret("x").is_err());
        }
    }
}
