//! What a tenant's restore did, for those who did not see it: the customer, the auditor.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The version of this form.
pub const CERTIFICATE_VERSION: u32 = 1;

/// The certificate of one tenant's restore, or of taking one back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`CERTIFICATE_VERSION`].
    pub version: u32,
    /// The restore's id.
    pub id: String,
    /// The database workload.
    pub workload: String,
    /// The tenant.
    pub tenant: CertifiedTenant,
    /// `restore`, or `undo`.
    pub what: String,
    /// The restore that was taken back, of an undo.
    pub undo_of: Option<String>,
    /// `replace` or `missing`.
    pub mode: String,
    /// What was left out on purpose, in words; empty when everything of the tenant was restored.
    pub only: Vec<String>,
    /// The moment asked for; none of an undo.
    pub target: Option<String>,
    /// Where recovery ended.
    pub reached: Option<Reached>,
    /// Who asked for it.
    pub by: Option<String>,
    /// The host it ran on.
    pub host: Option<String>,
    /// When it began (wall clock).
    pub started: DateTime<Utc>,
    /// When the result had been checked (wall clock).
    pub finished: DateTime<Utc>,
    /// The database transaction that did it; none when no row differed.
    pub transaction: Option<String>,
    /// The restore point that holds the state from before.
    pub undo_point: Option<String>,
    /// Every table in which the tenant has rows, or that was written.
    pub tables: Vec<CertifiedTable>,
    /// Files put back and removed, by workload.
    pub folders: Vec<CertifiedFolder>,
    /// What was erased of the customer's data and was not brought back; none where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasures: Option<Vec<CertifiedErasure>>,
    /// Whether it was shown that the rows are as they are to be.
    pub verdict: Verdict,
    /// What was shown, line by line.
    pub proof: Vec<CertifiedProof>,
    /// What was told about the restore, one line each.
    pub notes: Vec<String>,
    /// The program and its version.
    pub program: String,
}

/// Whose data it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedTenant {
    /// The value of the tenant column, as text.
    pub id: String,
    /// What people call it.
    pub name: String,
}

/// Where recovery of the state at the target ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// The position in the write-ahead log.
    pub lsn: Option<String>,
    /// The last commit that is contained.
    pub last_commit: Option<DateTime<Utc>>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedTable {
    /// `schema.table`.
    pub table: String,
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// The tenant's rows, read again after the commit; none where they were not read.
    pub rows: Option<u64>,
    /// The checksum of these rows.
    pub sha256: Option<String>,
}

/// One entry of the ledger of erasures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedErasure {
    /// Its id.
    pub id: String,
    /// When it was recorded (wall clock).
    pub recorded: DateTime<Utc>,
    /// Rows that it kept from being brought back.
    pub rows: u64,
}

/// One folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedFolder {
    /// The workload.
    pub workload: String,
    /// Entries written.
    pub written: u64,
    /// Entries removed.
    pub removed: u64,
}

/// One thing that was to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedProof {
    /// What.
    pub what: String,
    /// Whether it was; none where it could not be measured.
    pub holds: Option<bool>,
    /// The numbers.
    pub detail: String,
}

/// What the proof comes to; hooks have no part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All of it was measured, and is as it must be.
    Proved,
    /// What was measured is as it must be; some could not be measured.
    ProvedInPart,
    /// Something is not as it must be.
    NotProved,
    /// Nothing differed, and nothing was written.
    NothingDiffered,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Proved => "proved",
            Self::ProvedInPart => "proved in part",
            Self::NotProved => "not proved",
            Self::NothingDiffered => "nothing differed",
        })
    }
}

impl Certificate {
    /// The one form in which it is signed: the canonical JSON of RFC 8785. Names are sorted, nothing stands
    /// between the tokens. All numbers are whole and far below 2^53, so that they are written alike everywhere.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut out = String::new();
        write(&value, &mut out);
        out.into_bytes()
    }
}

fn write(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Array(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(value, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            // By UTF-16 units, says the RFC; the names of this form are ASCII.
            names.sort_unstable();
            out.push('{');
            for (at, name) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(&Value::String(name.clone()), out);
                out.push(':');
                write(members.get(name).unwrap_or(&Value::Null), out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}
