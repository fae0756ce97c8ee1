//! The only source of randomness for identifiers. Keys and nonces are the store's own matter.

/// Fills `buffer` with random bytes, of the operating system's own generator: one in the process would first
/// have to gather its own randomness, a fifth of the time that `wal push` takes.
///
/// # Panics
/// When the operating system's generator fails: nothing safe can be done without it.
pub fn fill(buffer: &mut [u8]) {
    assert!(
        getrandom::fill(buffer).is_ok(),
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
