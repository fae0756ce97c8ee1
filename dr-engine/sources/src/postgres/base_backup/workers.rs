//! Reading files in parallel.
//!
//! Worker threads take files from one queue. A suspicious page needs the server's current insert
//! position, which only the backup's session can ask for: workers send the question to the
//! conductor, who owns the session, and wait for the answer. The first failure stops the others at
//! their next buffer; so does dropping the conductor.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dr_model::{Lsn, Progress};
use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::CorruptPage;
use super::known::{KnownFile, KnownFiles};
use super::listing::ListedFile;
use super::reader::{CheckedReader, Stopped};
use super::session::insert_position;
use super::throttle::Throttle;
use crate::postgres::parts::{self, PartedFile};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// Beyond this many corrupt pages only their number is kept: the cluster is lost anyway.
const CORRUPT_PAGES_LISTED_MAX: usize = 1000;
/// One question at a time can wait for each worker.
const QUESTIONS_MAX: usize = 64;

type Question = oneshot::Sender<Option<Lsn>>;

/// What all workers of one capture share.
pub(super) struct Shared {
    pub(super) sink: Arc<dyn ItemSink>,
    pub(super) progress: Arc<dyn Progress>,
    pub(super) stop: CancellationToken,
    pub(super) page_bytes: usize,
    /// Pages in one file of a relation.
    pub(super) segment_pages: u32,
    pub(super) check_pages: bool,
    pub(super) start_lsn: Lsn,
    pub(super) throttle: Option<Throttle>,
    known: KnownFiles,
    /// Files that are in parts now.
    parted: Mutex<BTreeMap<String, PartedFile>>,
    questions: mpsc::Sender<Question>,
    files: Vec<ListedFile>,
    next: AtomicUsize,
    pub(super) counts: Counts,
    corrupt: Mutex<Vec<CorruptPage>>,
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) vanished: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) corrupt: AtomicU64,
    /// Bytes of files that were not read, because nothing in them changed.
    pub(super) spared: AtomicU64,
    /// Pages of files in parts that were read.
    pub(super) changed: AtomicU64,
}

/// What a capture needs to know about the cluster and its caller.
pub(super) struct Setting {
    pub(super) sink: Arc<dyn ItemSink>,
    pub(super) progress: Arc<dyn Progress>,
    pub(super) stop: CancellationToken,
    pub(super) page_bytes: usize,
    pub(super) segment_pages: u32,
    pub(super) check_pages: bool,
    pub(super) start_lsn: Lsn,
    pub(super) known: KnownFiles,
    pub(super) throttle: Option<Throttle>,
}

impl Shared {
    fn new(setting: Setting, files: Vec<ListedFile>, questions: mpsc::Sender<Question>) -> Self {
        Self {
            sink: setting.sink,
            progress: setting.progress,
            stop: setting.stop,
            page_bytes: setting.page_bytes,
            segment_pages: setting.segment_pages,
            check_pages: setting.check_pages,
            start_lsn: setting.start_lsn,
            throttle: setting.throttle,
            known: setting.known,
            parted: Mutex::default(),
            questions,
            files,
            next: AtomicUsize::new(0),
            counts: Counts::default(),
            corrupt: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn count_page(&self) {
        self.counts.pages.fetch_add(1, Ordering::Relaxed);
    }

    /// A wrong checksum is harmless only if the page was changed since backup mode began, because
    /// then the WAL holds the whole page (full-page writes). Its LSN must lie between the start and
    /// what the server has written by now: one beyond that was never written by the server.
    pub(super) fn is_benign(&self, lsn: Lsn) -> bool {
        if lsn <= self.start_lsn {
            return false;
        }
        let (ask, answer) = oneshot::channel();
        if self.questions.blocking_send(ask).is_err() {
            return false;
        }
        answer
            .blocking_recv()
            .ok()
            .flatten()
            .is_some_and(|current| lsn <= current)
    }

    pub(super) fn report_corrupt(&self, path: &str, page: u64, what: String) {
        self.counts.corrupt.fetch_add(1, Ordering::Relaxed);
        let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if corrupt.len() < CORRUPT_PAGES_LISTED_MAX {
            corrupt.push(CorruptPage {
                path: path.to_owned(),
                page,
                what,
            });
        }
    }

    /// The corrupt pages in order of path and page.
    pub(super) fn corrupt_pages(&self) -> Vec<CorruptPage> {
        let mut pages = self
            .corrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        pages.sort_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
        let listed = u64::try_from(pages.len()).unwrap_or(u64::MAX);
        let unlisted = self
            .counts
            .corrupt
            .load(Ordering::Relaxed)
            .saturating_sub(listed);
        if unlisted > 0 {
            let what = format!("{unlisted} more corrupt pages are not listed");
            pages.push(CorruptPage {
                path: "…".to_owned(),
                page: 0,
                what,
            });
        }
        pages
    }

    /// The files that are in parts.
    pub(super) fn parted(&self) -> BTreeMap<String, PartedFile> {
        self.parted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn take_files(&self) -> Result<(), SourceError> {
        while let Some(file) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.is_cancelled() {
                return Err(cancelled());
            }
            self.take_file(file)?;
        }
        Ok(())
    }

    /// Hands one file to the sink. One that vanished is skipped: the WAL knows why.
    fn take_file(&self, listed: &ListedFile) -> Result<(), SourceError> {
        let failed = |error| SourceError::file("read", &listed.source)(error);
        let file = match open_regular(&listed.source) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.counts.vanished.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if let Some(known) = self.known.files.get(&listed.path)
            && self.take_changes(listed, known, &file, &metadata)?
        {
            return Ok(());
        }
        let item = Item::from_metadata(listed.path.clone(), ItemKind::File, &metadata);
        let check = self.first_page(listed).filter(|_| self.check_pages);
        let reader = CheckedReader::new(&file, &listed.path, metadata.len(), check, self);
        self.hand_file(listed, &item, reader)
    }

    fn first_page(&self, listed: &ListedFile) -> Option<u32> {
        let segment = listed.relation_segment?;
        Some(segment.wrapping_mul(self.segment_pages))
    }

    /// Has the sink take over what it holds of a file, and hands over the pages that changed since; whether
    /// that will do.
    fn take_changes(
        &self,
        listed: &ListedFile,
        known: &KnownFile,
        file: &File,
        metadata: &Metadata,
    ) -> Result<bool, SourceError> {
        let bytes = metadata.len();
        let page_bytes = u64::try_from(self.page_bytes).unwrap_or(u64::MAX);
        let Some(pages) = known.pages_to_read(bytes, page_bytes) else {
            return Ok(false);
        };
        let goes_on = !pages.is_empty() || bytes != known.bytes;
        let carried = self.sink.carry(&listed.path, goes_on);
        if !carried.map_err(|source| SourceError::Sink {
            item: listed.path.clone(),
            source,
        })? {
            return Ok(false);
        }
        let count = u64::try_from(pages.len()).unwrap_or(u64::MAX);
        let spared = bytes.saturating_sub(count.saturating_mul(page_bytes));
        self.counts.spared.fetch_add(spared, Ordering::Relaxed);
        self.counts.changed.fetch_add(count, Ordering::Relaxed);
        self.progress.advance(spared);
        if goes_on {
            let path = parts::path(known.parts, &listed.path);
            let item = Item::from_metadata(path, ItemKind::File, metadata);
            let check = self.first_page(listed).filter(|_| self.check_pages);
            let page_size = u32::try_from(self.page_bytes).unwrap_or(u32::MAX);
            let header = parts::header(page_size, bytes, &pages);
            let reader = CheckedReader::new(file, &listed.path, bytes, check, self);
            self.hand_file(listed, &item, reader.only(&pages, header))?;
        } else {
            self.counts.files.fetch_add(1, Ordering::Relaxed);
        }
        if goes_on || known.parts > 1 {
            let parted = PartedFile {
                parts: known.parts + u32::from(goes_on),
                bytes,
                pages: known.pages_in_parts + count,
            };
            let mut all = self.parted.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(listed.path.clone(), parted);
        }
        Ok(true)
    }

    /// Hands a file, or a part of it, to the sink.
    fn hand_file(
        &self,
        listed: &ListedFile,
        item: &Item,
        mut reader: CheckedReader<'_>,
    ) -> Result<(), SourceError> {
        let failed = |error| SourceError::file("read", &listed.source)(error);
        let kind = match listed.relation_segment {
            Some(_) => ContentKind::Pages,
            None => ContentKind::Other,
        };
        let kept = self.sink.file(item, &mut reader, kind);
        match (reader.stopped(), kept) {
            (Some(Stopped::Cancelled), _) => Err(cancelled()),
            (Some(Stopped::Failed(error)), _) => Err(failed(error)),
            (None, Err(source)) => Err(SourceError::Sink {
                item: item.path.clone(),
                source,
            }),
            (None, Ok(())) if !reader.is_finished() => Err(SourceError::Sink {
                item: item.path.clone(),
                source: "it was not read to its end".into(),
            }),
            (None, Ok(())) => {
                self.counts.files.fetch_add(1, Ordering::Relaxed);
                self.counts
                    .bytes
                    .fetch_add(reader.bytes(), Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// Opens without following a link that took the file's place since the listing.
fn open_regular(path: &PathBuf) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

pub(super) fn cancelled() -> SourceError {
    SourceError::Cancelled {
        what: "the base backup",
    }
}

/// Reads all `files` with `parallelism` threads, answering their questions on `session`.
pub(super) async fn read_all(
    setting: Setting,
    files: Vec<ListedFile>,
    entries: Vec<Item>,
    parallelism: usize,
    session: &mut PgConnection,
) -> Result<Arc<Shared>, SourceError> {
    let (questions, mut asked) = mpsc::channel(QUESTIONS_MAX);
    let shared = Arc::new(Shared::new(setting, files, questions));
    let mut workers = JoinSet::new();
    let of_entries = Arc::clone(&shared);
    workers.spawn_blocking(move || hand_over(&of_entries, &entries));
    for _ in 0..parallelism.max(1) {
        let shared = Arc::clone(&shared);
        workers.spawn_blocking(move || shared.take_files());
    }
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            Some(question) = asked.recv() => {
                // Whoever asked may have been stopped meanwhile; then nobody needs the answer.
                let _ = question.send(insert_position(session).await.ok());
            }
            ended = workers.join_next() => match ended {
                None => break,
                Some(ended) => {
                    let result = ended
                        .unwrap_or(Err(SourceError::Worker { what: "the base backup" }));
                    if result.is_err() {
                        shared.stop.cancel();
                    }
                    // The first failure is the cause of those that follow.
                    outcome = outcome.and(result);
                }
            }
        }
    }
    outcome.map(|()| shared)
}

fn hand_over(shared: &Shared, entries: &[Item]) -> Result<(), SourceError> {
    for entry in entries {
        if shared.stop.is_cancelled() {
            return Err(cancelled());
        }
        shared
            .sink
            .entry(entry)
            .map_err(|source| SourceError::Sink {
                item: entry.path.clone(),
                source,
            })?;
    }
    Ok(())
}
