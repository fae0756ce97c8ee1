//! PostgreSQL's `backup_manifest` ("Backup Manifest Format", chapter 76 of the documentation).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use chrono::DateTime;
use dr_model::SystemId;
use sha2::{Digest, Sha256};

use super::{ManifestFile, WalRange, durable};
use crate::SourceError;

/// What `pg_verifybackup` does not look at either.
const NOT_LISTED: [&str; 4] = [
    "backup_manifest",
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
];
/// From this major version on the manifest names its cluster.
const MAJOR_WITH_SYSTEM_ID: u32 = 17;

/// Writes PostgreSQL's `backup_manifest`, so that `pg_verifybackup -n` can judge the folder. Of
/// several entries with one path the last one counts: a generated file replaces the captured one.
///
/// # Errors
/// When it cannot be written durably.
pub fn write_backup_manifest(
    data_directory: &Path,
    major_version: u32,
    system_id: SystemId,
    files: &[ManifestFile],
    wal: &[WalRange],
) -> Result<(), SourceError> {
    let text = render(major_version, system_id, files, wal);
    durable::write(data_directory, "backup_manifest", text.as_bytes()).map(drop)
}

fn render(
    major_version: u32,
    system_id: SystemId,
    files: &[ManifestFile],
    wal: &[WalRange],
) -> String {
    let by_path: BTreeMap<&str, &ManifestFile> = files
        .iter()
        .filter(|file| {
            !NOT_LISTED.contains(&file.path.as_str()) && !file.path.starts_with("pg_wal/")
        })
        .map(|file| (file.path.as_str(), file))
        .collect();
    let mut text = if major_version >= MAJOR_WITH_SYSTEM_ID {
        format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_id},\n"
        )
    } else {
        "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned()
    };
    let files: Vec<String> = by_path.into_values().map(file_entry).collect();
    let ranges: Vec<String> = wal.iter().map(range_entry).collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n{}\n],\n",
        files.join(",\n"),
        ranges.join(",\n")
    );
    // Of everything before this line.
    let checksum = hex::encode(Sha256::digest(text.as_bytes()));
    let _ = writeln!(text, "\"Manifest-Checksum\": \"{checksum}\"}}");
    text
}

fn file_entry(file: &ManifestFile) -> String {
    let modified = DateTime::from_timestamp(file.modified_seconds, 0).unwrap_or_default();
    format!(
        "{{ \"Path\": {}, \"Size\": {}, \"Last-Modified\": \"{}\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
        serde_json::Value::from(file.path.as_str()),
        file.size,
        modified.format("%Y-%m-%d %H:%M:%S GMT"),
        // PostgreSQL writes the bytes as they lie in memory (on every machine it has released: little-endian).
        hex::encode(file.crc32c.to_le_bytes())
    )
}

fn range_entry(range: &WalRange) -> String {
    format!(
        "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
        range.timeline, range.start, range.end
    )
}

#[cfg(test)]
mod tests {
    use dr_model::{Lsn, Timeline};

    use super::*;

    #[test]
    fn a_manifest_is_json_that_carries_its_own_checksum() {
        let file = |path: &str, size| ManifestFile {
            path: path.to_owned(),
            size,
            modified_seconds: 0,
            crc32c: 7,
        };
        let files = [
            file("a\"b", 1),
            file("PG_VERSION", 2),
            file("PG_VERSION", 3),
            file("pg_wal/x", 1),
        ];
        let wal = [WalRange {
            timeline: Timeline(1),
            start: Lsn(0x28),
            end: Lsn(0x100),
        }];
        let text = render(17, SystemId(12), &files, &wal);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["System-Identifier"], 12);
        assert_eq!(json["Files"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            json["Files"][0]["Size"], 3,
            "the later entry of a path counts"
        );
        let body = text.split("\"Manifest-Checksum\"").next().expect("a body");
        assert_eq!(
            json["Manifest-Checksum"],
            hex::encode(Sha256::digest(body.as_bytes()))
        );
        assert!(render(15, SystemId(12), &files, &wal).contains("Manifest-Version\": 1"));
    }
}
