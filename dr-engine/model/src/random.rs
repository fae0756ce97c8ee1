//! The only source of randomness for identifiers. Keys and nonces are the store's own matter.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Fills `buffer` with random bytes.
///
/// # Panics
/// When the operating system's generator fails: nothing safe can be done without it.
pub fn fill(buffer: &mut [u8]) {
    assert!(
        SystemRandom::new().fill(buffer).is_ok(),
        "the operating system gave no random bytes"
    );
}

/// `bytes` random bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: usize) -> String {
    let mut buffer = vec![0u8; bytes];
    fill(&mut buffer);
    hex::encode(buffer)
}
