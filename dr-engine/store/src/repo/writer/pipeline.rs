//! The threads of one backup.
//!
//! ```text
//! callers: read, cut, checksum --chunks--> workers: name, compress, seal --packs--> uploaders: store
//! ```
//!
//! Both queues are bounded, so a slow place holds the workers back and they the callers: memory is
//! bounded by the queues, the open packs and the packs being stored. After a failure everybody goes on
//! taking from the queues and drops what comes, so that nobody waits for ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::assembly::Assembly;
use super::packs::{Packs, Upload};
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::content::Content;
use crate::format::tree::{EntryMeta, TreeEntry};
use crate::repo::keys::Domain;

/// Chunks that wait for a worker, for each worker: so much that none runs dry while a caller reads.
const CHUNKS_WAITING: usize = 2;
/// Packs that wait for an uploader.
const PACKS_WAITING: usize = 1;

/// A file whose content is on its way.
#[derive(Debug)]
pub(super) struct PendingFile {
    meta: EntryMeta,
    key: u16,
    keys: Arc<Keys>,
    assembly: Mutex<Assembly>,
}

/// A chunk on its way to a worker.
#[derive(Debug)]
struct Chunk {
    file: Arc<PendingFile>,
    number: u64,
    data: Vec<u8>,
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) packs: Packs,
    pub(super) entries: Mutex<Vec<TreeEntry>>,
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) shared: Arc<Shared>,
    chunks: Option<Sender<Chunk>>,
    pub(super) uploads: Option<Sender<Upload>>,
    workers: Vec<JoinHandle<()>>,
    uploaders: Vec<JoinHandle<()>>,
}

impl Pipeline {
    pub(super) fn start(
        packs: Packs,
        workers: usize,
        uploaders: usize,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            packs,
            entries: Mutex::default(),
        });
        let (chunks, waiting) = bounded(CHUNKS_WAITING * workers);
        let (uploads, ready) = bounded(PACKS_WAITING);
        let mut pipeline = Self {
            shared,
            chunks: Some(chunks),
            uploads: Some(uploads.clone()),
            workers: Vec::new(),
            uploaders: Vec::new(),
        };
        for _ in 0..workers {
            let (shared, waiting) = (Arc::clone(&pipeline.shared), waiting.clone());
            let uploads = uploads.clone();
            pipeline.workers.push(spawn("dr-worker", move || {
                work(&shared, &waiting, &uploads);
            })?);
        }
        for _ in 0..uploaders {
            let (shared, ready) = (Arc::clone(&pipeline.shared), ready.clone());
            pipeline
                .uploaders
                .push(spawn("dr-upload", move || upload(&shared, &ready))?);
        }
        Ok(pipeline)
    }

    pub(super) fn begin_file(
        &self,
        domain: &Domain,
        meta: EntryMeta,
        keys: Arc<Keys>,
    ) -> Result<Arc<PendingFile>, StoreError> {
        let key = self.shared.packs.number_of(domain, &keys)?;
        Ok(Arc::new(PendingFile {
            meta,
            key,
            keys,
            assembly: Mutex::default(),
        }))
    }

    /// Hands a chunk to the workers; waits while too many wait already.
    pub(super) fn chunk(
        &self,
        file: &Arc<PendingFile>,
        number: u64,
        data: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.shared.packs.check()?;
        let file = Arc::clone(file);
        let chunk = Chunk { file, number, data };
        match &self.chunks {
            Some(chunks) => chunks.send(chunk).map_err(|_| StoreError::WriterFailed),
            None => Err(StoreError::WriterFailed),
        }
    }

    /// The file was read to its end. Its entry follows when its last chunk is stored.
    pub(super) fn end_file(
        &self,
        file: &Arc<PendingFile>,
        chunks: u64,
        crc32c: u32,
    ) -> Result<(), StoreError> {
        let Some(uploads) = &self.uploads else {
            return Err(StoreError::WriterFailed);
        };
        let mut assembly = file.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        assembly.ended(chunks, crc32c);
        let store =
            |list: Vec<u8>| store_list(&self.shared.packs, file.key, &file.keys, &list, uploads);
        if let Some(content) = assembly.complete(&store)? {
            self.shared.entry(file, content);
        }
        Ok(())
    }

    /// Waits until every chunk is in a pack.
    pub(super) fn finish_chunks(&mut self) -> Result<(), StoreError> {
        self.chunks = None;
        join(&mut self.workers);
        self.shared.packs.check()
    }

    /// Waits until every pack is stored.
    pub(super) fn finish_packs(&mut self) -> Result<(), StoreError> {
        self.chunks = None;
        join(&mut self.workers);
        self.uploads = None;
        join(&mut self.uploaders);
        self.shared.packs.check()
    }
}

impl Shared {
    fn entry(&self, file: &PendingFile, content: Content) {
        self.add(TreeEntry::file(file.meta.clone(), file.key, content));
    }

    pub(super) fn add(&self, entry: TreeEntry) {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(entry);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|source| StoreError::Encode {
            what: "the backup: a thread cannot be started",
            source: Box::new(source),
        })
}

fn join(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.drain(..) {
        // A thread that panicked has left its file incomplete, which finishing notices.
        let _ = thread.join();
    }
}

fn store_list(
    packs: &Packs,
    key: u16,
    keys: &Keys,
    list: &[u8],
    uploads: &Sender<Upload>,
) -> Result<crate::format::ChunkName, StoreError> {
    packs
        .store_chunk(key, keys, list, uploads)
        .map(|reference| reference.name)
}

fn work(shared: &Shared, waiting: &Receiver<Chunk>, uploads: &Sender<Upload>) {
    for chunk in waiting {
        if shared.packs.has_failed() {
            continue;
        }
        if let Err(error) = take(shared, &chunk, uploads) {
            shared.packs.fail(error);
        }
    }
}

fn take(shared: &Shared, chunk: &Chunk, uploads: &Sender<Upload>) -> Result<(), StoreError> {
    let file = &chunk.file;
    let packs = &shared.packs;
    let reference = packs.store_chunk(file.key, &file.keys, &chunk.data, uploads)?;
    let store = |list: Vec<u8>| store_list(packs, file.key, &file.keys, &list, uploads);
    let mut assembly = file.assembly.lock().unwrap_or_else(PoisonError::into_inner);
    assembly.stored(chunk.number, reference, &store)?;
    if let Some(content) = assembly.complete(&store)? {
        shared.entry(file, content);
    }
    Ok(())
}

fn upload(shared: &Shared, ready: &Receiver<Upload>) {
    for pack in ready {
        if shared.packs.has_failed() {
            continue;
        }
        if let Err(error) = shared.packs.store_pack(pack) {
            shared.packs.fail(error);
        }
    }
}
