//! The probe's log: a header line, then one line for each operation.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Answer;
use crate::DrillError;

/// The version of the log's form.
pub(super) const LOG_VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the log's form.
    pub version: u32,
    /// The probe's name.
    pub probe: String,
    /// SHA-256 of the probe's file.
    pub probe_sha256: String,
    /// Part of every key.
    pub run: String,
    /// The boot the monotonic times belong to.
    pub boot_id: String,
    /// Between the beginnings of two cycles.
    pub interval_ms: u64,
    /// After this long an outcome is unknown.
    pub timeout_ms: u64,
    /// Begin on CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// Begin on the wall clock.
    pub started: DateTime<Utc>,
    /// Who is probed in each cycle.
    pub tenants: Vec<String>,
}

/// A write or the read that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A new key is written.
    Write,
    /// It is looked up.
    Read,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The answer arrived: done.
    Acked,
    /// Nothing was sent, or the service refused.
    Failed,
    /// Sent, and no answer came.
    Unknown,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts writes; a read has its write's number.
    pub seq: u64,
    /// Counts cycles.
    pub cycle: u64,
    /// The tenant.
    pub tenant: String,
    /// The key written or looked up.
    pub key: String,
    /// Write or read.
    pub op: Op,
    /// Just before sending, CLOCK_MONOTONIC.
    pub sent_ns: u64,
    /// Just after the answer or the end of waiting, CLOCK_MONOTONIC.
    pub done_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The wall clock at `sent_ns`.
    pub wall: DateTime<Utc>,
    /// Why it was not acknowledged.
    pub error: Option<String>,
    /// Queues: the message's sequence number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

impl Record {
    pub(super) fn answered(&self, answer: Answer) -> Self {
        Self {
            outcome: answer.outcome,
            error: answer.error,
            sequence: answer.sequence.or(self.sequence),
            ..self.clone()
        }
    }
}

/// A log as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeLog {
    /// The first line.
    pub header: Header,
    /// All others, in order.
    pub records: Vec<Record>,
}

impl ProbeLog {
    /// Reads a log, also one that is still being written: an incomplete last line is left out.
    /// `None` while there is no header yet.
    ///
    /// # Errors
    /// When the file cannot be read or a complete line is not what it should be.
    pub fn read(path: &Path) -> Result<Option<Self>, DrillError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DrillError::file("read", path)(error)),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Option<Self>, DrillError> {
        let complete = text
            .rfind('\n')
            .map_or("", |end| text.get(..end).unwrap_or(""));
        let mut lines = complete.lines().enumerate();
        let Some((_, first)) = lines.next() else {
            return Ok(None);
        };
        let malformed = |number: usize, error: serde_json::Error| DrillError::Malformed {
            path: path.to_owned(),
            what: "a probe's log",
            reason: format!("line {}: {error}", number + 1),
        };
        let header = serde_json::from_str(first).map_err(|error| malformed(0, error))?;
        let records = lines
            .map(|(number, line)| serde_json::from_str(line).map_err(|e| malformed(number, e)))
            .collect::<Result<_, _>>()?;
        Ok(Some(Self { header, records }))
    }
}

/// Appends lines, each by one write(2).
#[derive(Debug)]
pub(super) struct LogWriter {
    file: File,
    path: PathBuf,
}

impl LogWriter {
    /// A log holds one run: an existing file with something in it is refused.
    pub(super) fn create(path: &Path, header: &Header) -> Result<Self, DrillError> {
        let file = std::fs::OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path)
            .map_err(DrillError::file("create", path))?;
        let mut writer = Self {
            file,
            path: path.to_owned(),
        };
        writer.line(header)?;
        Ok(writer)
    }

    pub(super) fn append(&mut self, record: &Record) -> Result<(), DrillError> {
        self.line(record)
    }

    fn line<T: Serialize>(&mut self, value: &T) -> Result<(), DrillError> {
        let mut line = serde_json::to_vec(value).map_err(|error| DrillError::Malformed {
            path: self.path.clone(),
            what: "a line of a probe's log",
            reason: error.to_string(),
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(DrillError::file("write", &self.path))
    }

    pub(super) fn finish(self) -> Result<(), DrillError> {
        self.file
            .sync_all()
            .map_err(DrillError::file("sync", &self.path))
    }
}
