//! Records: small write-once JSON documents of which the repository is the truth (bindings, tenant
//! restores, drill runs with their evidence, configuration snapshots). Sealed under the master key.

use super::Repository;
use crate::StoreError;
use crate::backend::{PutOutcome, check_name};
use crate::format::header::Kind;

fn record_name(kind: &str, name: &str) -> Result<String, StoreError> {
    let rule = "use a-z, A-Z, 0-9, `.`, `_`, `-` and, in a record's name, `/`";
    let object = format!("records/{kind}/{name}");
    if kind.contains('/') || check_name(&object).is_err() {
        return Err(StoreError::InvalidName {
            name: format!("{kind}/{name}"),
            rule,
        });
    }
    Ok(object)
}

impl Repository {
    /// Stores a record, durable on return. The same content again is fine.
    ///
    /// # Errors
    /// When the record exists with other content, or the place fails.
    pub fn put_record(&self, kind: &str, name: &str, body: &[u8]) -> Result<(), StoreError> {
        let object = record_name(kind, name)?;
        let repo = self.inner();
        repo.is_first()?;
        if repo.put_sealed(&repo.master, Kind::Record, &object, body)? == PutOutcome::Stored {
            repo.put_stored_at_copies(&object);
            return Ok(());
        }
        let stored = repo
            .get_sealed(&repo.master, Kind::Record, &object)?
            .ok_or_else(|| repo.missing(&object))?;
        if stored == body {
            Ok(())
        } else {
            Err(StoreError::RecordConflict {
                kind: kind.to_owned(),
                name: name.to_owned(),
            })
        }
    }

    /// A record's content; `None` if there is none.
    ///
    /// # Errors
    /// When the record is damaged or the place fails.
    pub fn get_record(&self, kind: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let repo = self.inner();
        repo.get_sealed(&repo.master, Kind::Record, &record_name(kind, name)?)
    }

    /// The names of all records of a kind, sorted.
    ///
    /// # Errors
    /// When the place fails.
    pub fn list_records(&self, kind: &str) -> Result<Vec<String>, StoreError> {
        record_name(kind, "any")?;
        let prefix = format!("records/{kind}/");
        let found = self.inner().list(&prefix)?;
        Ok(found
            .into_iter()
            .filter_map(|entry| entry.name.strip_prefix(&prefix).map(str::to_owned))
            .collect())
    }
}
