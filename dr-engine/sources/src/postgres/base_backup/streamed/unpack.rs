//! From tar archives to items, while they arrive.
//!
//! One thread takes the archives apart; as many as wanted hand the files in them to the sink. A file's
//! content goes from one to the other in pieces, so that memory is bounded by threads and not by files.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use dr_replication::SentTablespace;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use super::pages::{AllSuspicious, Suspicious};
use super::whole::Paths;
use crate::postgres::base_backup::listing::relation_segment;
use crate::postgres::base_backup::page::{PageState, is_new, judge};
use crate::postgres::control;
use crate::postgres::details::Tablespace;
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// A file's content goes to its thread in pieces of this size: a multiple of every page size.
const PIECE_BYTES: usize = 256 * 1024;
/// So many pieces of a file wait for its thread.
const PIECES_WAITING: usize = 8;
/// Beyond this many, suspicious pages are only counted.
const SUSPICIOUS_MAX: usize = 10_000;
/// A label or a control file is not larger.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// What arrives.
#[derive(Debug)]
pub(super) enum Piece {
    /// An archive begins: a tablespace's, or that of the data directory.
    Archive(Option<SentTablespace>),
    Data(Bytes),
    /// There is no more.
    End,
}

/// What unpacking needs to know.
pub(super) struct Setting {
    pub(super) sink: Arc<dyn ItemSink>,
    pub(super) page_bytes: usize,
    pub(super) segment_pages: u32,
    pub(super) check_pages: bool,
    pub(super) parallelism: usize,
}

/// User and group.
pub(super) type Owner = (u32, u32);

/// What was unpacked.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) pages: u64,
    pub(super) suspicious: AllSuspicious,
    /// Everything that was received, by path.
    pub(super) paths: Paths,
    pub(super) tablespaces: Vec<Tablespace>,
    /// The content of `backup_label`.
    pub(super) label: String,
    /// Of the cluster's files.
    pub(super) owner: Owner,
    /// The control file was sent while it was written, and is not kept: whose it is.
    pub(super) control_torn: Option<Owner>,
}

/// Takes everything that arrives to its end.
pub(super) fn unpack(
    incoming: mpsc::Receiver<Piece>,
    setting: Setting,
) -> Result<Unpacked, SourceError> {
    let (files, waiting) = crossbeam_channel::bounded::<Sent>(0);
    let shared = Shared {
        setting,
        pages: AtomicU64::new(0),
        suspicious: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    // What the sink stores in may need the runtime to do it.
    let runtime = tokio::runtime::Handle::current();
    let mut unpacked = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shared.setting.parallelism)
            .map(|_| {
                let (waiting, shared, runtime) = (waiting.clone(), &shared, runtime.clone());
                scope.spawn(move || {
                    let _runtime = runtime.enter();
                    let kept = waiting.iter().try_for_each(|sent| shared.keep(sent));
                    shared.failed.fetch_or(kept.is_err(), Ordering::Relaxed);
                    kept
                })
            })
            .collect();
        // Only the threads take files from here on: when all have failed, sending fails too.
        drop(waiting);
        let taken = Unpacking {
            shared: &shared,
            files,
            unpacked: Unpacked::default(),
            has_control: false,
        }
        .run(&mut Incoming::new(incoming));
        let mut outcome = Ok(());
        for thread in threads {
            let ended = thread.join().unwrap_or(Err(SourceError::Worker {
                what: "the base backup",
            }));
            outcome = outcome.and(ended);
        }
        // Why a thread failed is why nobody took the next file.
        outcome.and(taken)
    })?;
    unpacked.pages = shared.pages.into_inner();
    unpacked.suspicious = shared
        .suspicious
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(unpacked)
}

/// What arrives, as a stream of bytes that ends with each archive.
struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    /// What comes behind the archive that is read.
    next: Option<Piece>,
}

impl Incoming {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            next: None,
        }
    }

    /// Whose the next archive is; `None` when there is no more.
    fn archive(&mut self) -> Result<Option<Option<SentTablespace>>, SourceError> {
        match self.next.take().or_else(|| self.pieces.blocking_recv()) {
            Some(Piece::Archive(tablespace)) => Ok(Some(tablespace)),
            Some(Piece::End) => Ok(None),
            Some(Piece::Data(_)) => Err(bad("it sends data that belongs to no archive")),
            None => Err(bad("it broke off")),
        }
    }

    /// Reads what is left of an archive, which is filled up with zeros.
    fn finish_archive(&mut self) -> Result<(), SourceError> {
        let mut buffer = [0; 4096];
        loop {
            match self.read(&mut buffer).map_err(unreadable)? {
                0 => return Ok(()),
                read if buffer.iter().take(read).all(|byte| *byte == 0) => {}
                _ => return Err(bad("there is something behind the end of an archive")),
            }
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && self.next.is_none() {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(other) => self.next = Some(other),
                None => return Err(broke_off()),
            }
        }
        let count = self.current.len().min(out.len());
        if let Some(out) = out.get_mut(..count) {
            self.current.copy_to_slice(out);
        }
        Ok(count)
    }
}

/// A file on its way to a thread.
struct Sent {
    item: Item,
    bytes: u64,
    pieces: Receiver<Vec<u8>>,
}

struct Unpacking<'a> {
    shared: &'a Shared,
    files: crossbeam_channel::Sender<Sent>,
    unpacked: Unpacked,
    has_control: bool,
}

impl Unpacking<'_> {
    fn run(mut self, incoming: &mut Incoming) -> Result<Unpacked, SourceError> {
        while let Some(tablespace) = incoming.archive()? {
            let place = self.place(tablespace)?;
            let mut archive = tar::Archive::new(&mut *incoming);
            for entry in archive.entries().map_err(unreadable)? {
                self.entry(&place, &mut entry.map_err(unreadable)?)?;
            }
            incoming.finish_archive()?;
        }
        if !self.has_control || self.unpacked.label.is_empty() {
            return Err(bad("it has no control file or no label"));
        }
        Ok(self.unpacked)
    }

    /// Where in the point an archive's files go.
    fn place(&mut self, tablespace: Option<SentTablespace>) -> Result<String, SourceError> {
        let Some(SentTablespace { oid, location }) = tablespace else {
            return Ok("data".to_owned());
        };
        if location.starts_with('/') {
            let location = location.into();
            self.unpacked.tablespaces.push(Tablespace { oid, location });
            return Ok(format!("tablespaces/{oid}"));
        }
        // `allow_in_place_tablespaces`: a plain folder of the data directory.
        if location != format!("pg_tblspc/{oid}") {
            return Err(bad(format!("tablespace {oid} lies in `{location}`")));
        }
        Ok(format!("data/{location}"))
    }

    fn entry(
        &mut self,
        place: &str,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), SourceError> {
        let name = name_of(&entry.path_bytes())?;
        if name.is_empty() {
            return Ok(());
        }
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Regular => ItemKind::File,
            EntryType::Directory => ItemKind::Folder,
            EntryType::Symlink => {
                // A tablespace's link is no entry: a restored copy must never reach the original's files.
                if place == "data" && name.starts_with("pg_tblspc/") {
                    return Ok(());
                }
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                ItemKind::Link {
                    target: utf8(target)?,
                }
            }
            other => return Err(bad(format!("`{name}` is of kind {other:?}"))),
        };
        let in_data = (place == "data").then_some(name.as_str());
        let path = match in_data {
            Some("backup_label") => format!("label/{name}"),
            _ => format!("{place}/{name}"),
        };
        let item = item(path, kind, header).map_err(unreadable)?;
        self.unpacked.paths.insert(&item.path);
        match (&item.kind, in_data) {
            (ItemKind::File, Some("backup_label" | "global/pg_control")) => self.small(item, entry),
            (ItemKind::File, _) => self.file(item, entry),
            (ItemKind::Folder | ItemKind::Link { .. }, _) => {
                let kept = self.shared.setting.sink.entry(&item);
                kept.map_err(sink(&item))
            }
        }
    }

    /// Files that are looked into.
    fn small(
        &mut self,
        item: Item,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), SourceError> {
        if entry.size() > SMALL_BYTES_MAX {
            return Err(bad(format!("`{}` has {} bytes", item.path, entry.size())));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(unreadable)?;
        if item.path == "data/global/pg_control" {
            self.has_control = true;
            self.unpacked.owner = (item.uid, item.gid);
            if control::parse(&content).is_none() {
                self.unpacked.control_torn = Some(self.unpacked.owner);
                return Ok(());
            }
        }
        self.unpacked.files += 1;
        self.unpacked.bytes += content.len() as u64;
        let kept =
            self.shared
                .setting
                .sink
                .file(&item, &mut content.as_slice(), ContentKind::Other);
        kept.map_err(sink(&item))?;
        if item.path == "label/backup_label" {
            self.unpacked.label = utf8(content)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        item: Item,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), SourceError> {
        let bytes = entry.size();
        self.unpacked.files += 1;
        self.unpacked.bytes += bytes;
        let path = item.path.clone();
        let (pieces, content) = sync_channel(PIECES_WAITING);
        let gone = || SourceError::Sink {
            item: path.clone(),
            source: "nobody takes it".into(),
        };
        let sent = Sent {
            item,
            bytes,
            pieces: content,
        };
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(gone());
        }
        self.files.send(sent).map_err(|_| gone())?;
        pour(entry, bytes, &pieces, gone)
    }
}

/// Sends a file's content to its thread.
fn pour(
    content: &mut impl Read,
    mut left: u64,
    pieces: &SyncSender<Vec<u8>>,
    gone: impl Fn() -> SourceError,
) -> Result<(), SourceError> {
    while left > 0 {
        let wanted = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut piece = vec![0; wanted];
        content.read_exact(&mut piece).map_err(unreadable)?;
        pieces.send(piece).map_err(|_| gone())?;
        left -= wanted as u64;
    }
    Ok(())
}

/// What the threads share.
struct Shared {
    setting: Setting,
    pages: AtomicU64,
    suspicious: Mutex<AllSuspicious>,
    /// A thread has failed: the rest need not be received.
    failed: AtomicBool,
}

impl Shared {
    /// Hands a file to the sink.
    fn keep(&self, sent: Sent) -> Result<(), SourceError> {
        let segment = relation_segment(&sent.item.path);
        let first_page = segment
            .filter(|_| self.setting.check_pages)
            .map(|segment| segment.wrapping_mul(self.setting.segment_pages));
        let kind = match segment {
            Some(_) => ContentKind::Pages,
            None => ContentKind::Other,
        };
        let mut content = Content {
            shared: self,
            path: &sent.item.path,
            pieces: sent.pieces,
            piece: Vec::new(),
            given: 0,
            left: sent.bytes,
            first_page,
            page: 0,
        };
        let kept = self.setting.sink.file(&sent.item, &mut content, kind);
        kept.map_err(sink(&sent.item))?;
        if content.left > 0 || content.given < content.piece.len() {
            return Err(sink(&sent.item)("it was not read to its end".into()));
        }
        Ok(())
    }

    /// Judges the whole pages of a piece, the first of them number `page` of its file.
    fn check(&self, path: &str, piece: &[u8], page: u64, first_page: u32) {
        for (bytes, page) in piece.chunks_exact(self.setting.page_bytes).zip(page..) {
            let block = first_page.wrapping_add(u32::try_from(page).unwrap_or(u32::MAX));
            self.pages.fetch_add(1, Ordering::Relaxed);
            let PageState::Bad {
                lsn,
                stored,
                expected,
            } = judge(bytes, block)
            else {
                continue;
            };
            let mut all = self
                .suspicious
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if all.listed.len() >= SUSPICIOUS_MAX {
                all.more += 1;
                continue;
            }
            all.listed.push(Suspicious {
                path: path.to_owned(),
                page,
                block,
                lsn,
                stored,
                expected,
                is_new: is_new(bytes),
            });
        }
    }
}

/// A file's content as it comes in pieces. Its end is known beforehand: one that comes earlier is an error
/// and no end.
struct Content<'a> {
    shared: &'a Shared,
    path: &'a str,
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    given: usize,
    left: u64,
    /// The number of the file's first page within its relation; `None`: pages are not checked.
    first_page: Option<u32>,
    /// The number of the next piece's first page within the file.
    page: u64,
}

impl Content<'_> {
    fn refill(&mut self) -> io::Result<()> {
        self.piece = self.pieces.recv().map_err(|_| broke_off())?;
        self.given = 0;
        self.left = self.left.saturating_sub(self.piece.len() as u64);
        if let Some(first_page) = self.first_page {
            self.shared
                .check(self.path, &self.piece, self.page, first_page);
            self.page += (self.piece.len() / self.shared.setting.page_bytes) as u64;
        }
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.piece.len() && self.left > 0 && !out.is_empty() {
            self.refill()?;
        }
        let ready = self.piece.get(self.given..).unwrap_or_default();
        let count = ready.len().min(out.len());
        if let (Some(from), Some(to)) = (ready.get(..count), out.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        self.given += count;
        Ok(count)
    }
}

/// Relative, without `.` and a slash at the end; refused if it could lead out of its place.
fn name_of(bytes: &[u8]) -> Result<String, SourceError> {
    let text = utf8(bytes.to_vec())?;
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(bad(format!("it has an entry named `{text}`")));
    }
    let parts = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    Ok(parts.collect::<Vec<_>>().join("/"))
}

fn item(path: String, kind: ItemKind, header: &Header) -> io::Result<Item> {
    let number = |number: u64| u32::try_from(number).unwrap_or(0);
    let seconds = i64::try_from(header.mtime()?).unwrap_or(0);
    Ok(Item {
        path,
        kind,
        mode: header.mode()? & 0o7777,
        uid: number(header.uid()?),
        gid: number(header.gid()?),
        modified_ns: seconds.saturating_mul(1_000_000_000),
        changed_ns: 0,
        inode: 0,
    })
}

fn utf8(bytes: Vec<u8>) -> Result<String, SourceError> {
    String::from_utf8(bytes).map_err(|_| bad("a name or text in it is not UTF-8"))
}

fn sink(item: &Item) -> impl FnOnce(crate::SinkError) -> SourceError {
    let item = item.path.clone();
    move |source| SourceError::Sink { item, source }
}

fn broke_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off")
}

fn unreadable(error: io::Error) -> SourceError {
    bad(error.to_string())
}

fn bad(what: impl Into<String>) -> SourceError {
    SourceError::Refused(format!(
        "what the server sends as a base backup cannot be used: {}",
        what.into()
    ))
}
