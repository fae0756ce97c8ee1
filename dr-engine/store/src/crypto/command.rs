//! A slot whose secret an outside program keeps: any key service with a command line.
//!
//! At creation `wrap` is given the secret as one line of text on its standard input, and what it
//! prints goes into the slot. At opening `unwrap` is given that and must print the line again. No
//! shell is involved. The secret is never an argument and never in the environment; nothing of what
//! `unwrap` prints is repeated in a message. A program that hangs, floods or leaves its output open
//! is ended with its whole process group when its time is up.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use dr_model::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Secret, key_text};
use crate::StoreError;

/// A key service behind a network answers within this, or not at all.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A wrapped secret is some hundred bytes; what is much longer is something else.
pub(crate) const WRAPPED_BYTES_MAX: usize = 32 * 1024;
/// What is kept of the program's own words on its standard error.
const WORDS_BYTES_MAX: usize = 400;
/// A word this long in an error message may be a secret, and helps nobody.
const WORD_CHARS_MAX: usize = 24;
const POLL: Duration = Duration::from_millis(10);

/// The programs that wrap and unwrap a slot's secret, with their arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyCommand {
    /// Given the secret on standard input, prints it wrapped.
    pub wrap: Vec<String>,
    /// Given the wrapped secret on standard input, prints it as it was.
    pub unwrap: Vec<String>,
}

impl KeyCommand {
    pub(super) fn wrap(&self, secret: &Secret) -> Result<Vec<u8>, StoreError> {
        let text = key_text::write(key_text::SLOT_SECRET, secret);
        let program = Program::of(&self.wrap, "wrap", TIMEOUT)?;
        let wrapped = program.run(text.as_bytes())?;
        if wrapped.is_empty() {
            return Err(program.failed("it printed nothing"));
        }
        let digits = hex::encode(secret.as_slice());
        let shows_the_secret = |part: &[u8]| wrapped.windows(part.len()).any(|at| at == part);
        if shows_the_secret(digits.as_bytes()) || shows_the_secret(secret.as_slice()) {
            return Err(program.failed("it printed the secret unwrapped"));
        }
        Ok(wrapped.to_vec())
    }

    pub(super) fn unwrap(&self, wrapped: &[u8]) -> Result<Secret, StoreError> {
        let program = Program::of(&self.unwrap, "unwrap", TIMEOUT)?;
        let printed = program.run(wrapped)?;
        let garbage = || program.failed("it printed something else than what was wrapped");
        let text = std::str::from_utf8(&printed).map_err(|_| garbage())?;
        key_text::read(key_text::SLOT_SECRET, text).map_err(|_| garbage())
    }
}

struct Program<'a> {
    argv: &'a [String],
    name: &'a str,
    role: &'static str,
    timeout: Duration,
}

/// What became of the program.
struct Ended {
    status: ExitStatus,
    printed: Zeroizing<Vec<u8>>,
    words: Vec<u8>,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ended")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl<'a> Program<'a> {
    fn of(argv: &'a [String], role: &'static str, timeout: Duration) -> Result<Self, StoreError> {
        match argv.first() {
            Some(name) if !name.is_empty() => Ok(Self {
                argv,
                name,
                role,
                timeout,
            }),
            _ => Err(StoreError::InvalidKey {
                what: "its command names no program",
            }),
        }
    }

    fn failed(&self, what: impl Into<String>) -> StoreError {
        StoreError::KeyCommand {
            role: self.role,
            program: self.name.to_owned(),
            what: what.into(),
        }
    }

    fn run(&self, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let arguments = self.argv.get(1..).unwrap_or_default();
        let mut child = Command::new(self.name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| self.failed(format!("it cannot be started: {error}")))?;
        let ended = self.attend(&mut child, input);
        if ended.is_err() {
            end_group(&mut child);
        }
        let ended = ended?;
        if ended.printed.len() > WRAPPED_BYTES_MAX {
            return Err(self.failed("it printed far more than a key"));
        }
        if !ended.status.success() {
            let words = harmless(&ended.words);
            let colon = if words.is_empty() { "" } else { ": " };
            return Err(self.failed(format!("{}{colon}{words}", ended.status)));
        }
        Ok(ended.printed)
    }

    /// Feeds and hears the program until it ended and closed its output, or its time is up.
    fn attend(&self, child: &mut Child, input: &[u8]) -> Result<Ended, StoreError> {
        let clock = SystemClock;
        let deadline = clock.monotonic_ns() + u64::try_from(self.timeout.as_nanos()).unwrap_or(0);
        let left = || Duration::from_nanos(deadline.saturating_sub(clock.monotonic_ns()));
        let too_late = || {
            self.failed(format!(
                "it did not end within {} seconds",
                self.timeout.as_secs()
            ))
        };
        if let Some(mut stdin) = child.stdin.take() {
            let input = Zeroizing::new(input.to_vec());
            // A program may end without reading: what counts is what it prints.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let printed = collect(child.stdout.take(), WRAPPED_BYTES_MAX + 1, Beyond::HangsUp);
        let words = collect(child.stderr.take(), WORDS_BYTES_MAX, Beyond::IsDropped);
        let status = loop {
            if let Some(status) = child
                .try_wait()
                .map_err(|error| self.failed(format!("it cannot be waited for: {error}")))?
            {
                break status;
            }
            if left().is_zero() {
                return Err(too_late());
            }
            std::thread::sleep(POLL);
        };
        let hear = |from: &Receiver<Zeroizing<Vec<u8>>>| match from.recv_timeout(left()) {
            Ok(heard) => Ok(heard),
            Err(RecvTimeoutError::Timeout) => Err(too_late()),
            Err(RecvTimeoutError::Disconnected) => Err(self.failed("its output broke off")),
        };
        Ok(Ended {
            status,
            printed: hear(&printed)?,
            words: hear(&words)?.to_vec(),
        })
    }
}

/// What happens to output beyond its limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// The pipe is closed: the program is wrong and should end.
    HangsUp,
    /// It is read and forgotten: a program may be talkative.
    IsDropped,
}

/// Reads a pipe to its end on a thread of its own; keeps at most `limit` bytes.
fn collect(
    pipe: Option<impl Read + Send + 'static>,
    limit: usize,
    beyond: Beyond,
) -> Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // All its room at once, so that growing leaves no copy of a secret behind.
        let mut kept = Zeroizing::new(Vec::with_capacity(limit));
        let mut buffer = Zeroizing::new([0u8; 4096]);
        if let Some(mut pipe) = pipe {
            while let Ok(length @ 1..) = pipe.read(buffer.as_mut_slice()) {
                let room = limit - kept.len();
                let part = buffer.get(..length.min(room)).unwrap_or_default();
                kept.extend_from_slice(part);
                buffer.zeroize();
                if kept.len() == limit && beyond == Beyond::HangsUp {
                    break;
                }
            }
        }
        // Nobody listens any more when the time was up.
        let _ = sender.send(kept);
    });
    receiver
}

/// Ends the program and whatever it started and left in its group.
fn end_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The program's own words without what might be a secret.
fn harmless(words: &[u8]) -> String {
    String::from_utf8_lossy(words)
        .split_whitespace()
        .map(|word| {
            if word.chars().count() > WORD_CHARS_MAX {
                "[…]"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
