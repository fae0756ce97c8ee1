//! A folder: restored and compared, entry by entry, with what was stored.

use std::sync::Arc;

use dr_sources::files::{Expected, differences};

use super::{Checks, Work};
use crate::RestoreError;
use crate::error::{blocking, file_error, source_error};
use crate::files::{Erased, item_of, read_point, whole_folder};

/// At most this many differences are named.
const DIFFERENCES_NAMED_MAX: usize = 10;

pub(super) async fn verify(work: &Work<'_>, checks: &mut Checks) -> Result<(), RestoreError> {
    let folder = Temporary::below(&work.folder);
    let (workload, point) = (&work.point.workload, &work.point.id);
    let progress = Arc::clone(&work.progress);
    // What is proved is the point as it is stored, erased files and all; nobody sees it.
    let all = Erased::Left;
    let (done, _) =
        whole_folder(work.installation, workload, point, &folder.0, all, progress).await?;
    checks.held("restored", format!("{} entries", done.entries));
    let (repository, workload, point) = (work.repository.clone(), workload.clone(), point.clone());
    let found = blocking("compare the restored folder", move || {
        let (_, entries, _) = read_point(&repository, &workload, &point)?;
        let expected: Vec<Expected> = entries
            .iter()
            .map(|entry| Expected {
                item: item_of(entry),
                content: entry.crc32c.map(|crc32c| (entry.size, crc32c)),
            })
            .collect();
        let found = differences(&folder.0, &expected, &|_| true)
            .map_err(source_error("compare the restored folder"))?;
        std::fs::remove_dir_all(&folder.0).map_err(file_error("remove", &folder.0))?;
        Ok(found)
    })
    .await?;
    let named: Vec<String> = found
        .iter()
        .take(DIFFERENCES_NAMED_MAX)
        .map(|difference| format!("{} ({:?})", difference.path, difference.kind))
        .collect();
    let detail = if found.is_empty() {
        "every entry is as stored".to_owned()
    } else {
        format!("{} differences: {}", found.len(), named.join(", "))
    };
    checks.add("compared with what was stored", found.is_empty(), detail);
    Ok(())
}

/// A folder that is gone when dropped.
pub(super) struct Temporary(pub(super) std::path::PathBuf);

impl Temporary {
    pub(super) fn below(parent: &std::path::Path) -> Self {
        Self(parent.join(format!("dr-verify-{}", dr_model::random::hex(4))))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.0.display(), "a temporary folder was not removed");
        }
    }
}
