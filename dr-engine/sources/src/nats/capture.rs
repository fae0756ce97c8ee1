//! Handing a stream's archive to a sink, which reads and blocks, while it arrives.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Buf;
use dr_model::Progress;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::snapshot::{Chunk, RECEIVER, StreamSnapshot, snapshot};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// Chunks on their way to the sink: with 128 KiB each, some MiB of memory.
const CHUNKS_WAITING_MAX: usize = 16;

/// The path under which a stream's archive is handed to a sink.
#[must_use]
pub fn snapshot_path(stream: &str) -> String {
    format!("streams/{stream}.archive")
}

/// Takes a snapshot of `stream` into `sink`, as one file at [`snapshot_path`].
///
/// # Errors
/// As [`snapshot`]; and when the sink refuses. The sink's reader ends in an error then, never as if
/// the archive were complete.
pub async fn capture_stream(
    url: &str,
    stream: &str,
    sink: Arc<dyn ItemSink>,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<StreamSnapshot, SourceError> {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let item = Item {
        path: snapshot_path(stream),
        kind: ItemKind::File,
        mode: 0o600,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        // The archive is made for us now; it has no time of its own.
        modified_ns: 0,
        changed_ns: 0,
        inode: 0,
    };
    progress.phase(&format!("reading stream {stream}"), None);
    let path = item.path.clone();
    let keeping = tokio::task::spawn_blocking(move || {
        let mut reader = ArchiveReader {
            chunks: receiver,
            current: bytes::Bytes::new(),
            ended: false,
            progress,
        };
        sink.file(&item, &mut reader, ContentKind::Other)
    });
    let taken = snapshot(url, stream, &sender, cancel).await;
    // Without this the reader would wait for ever after a failure.
    drop(sender);
    let kept = keeping
        .await
        .map_err(|_| SourceError::Worker {
            what: "the capture of a stream",
        })?
        .map_err(|source| SourceError::Sink { item: path, source });
    match (taken, kept) {
        (Ok(snapshot), Ok(())) => Ok(snapshot),
        // The sink's refusal closed the channel: it is the cause.
        (Err(SourceError::Worker { what: RECEIVER }), Err(error)) | (Ok(_), Err(error)) => {
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

struct ArchiveReader {
    chunks: mpsc::Receiver<Chunk>,
    current: bytes::Bytes,
    ended: bool,
    progress: Arc<dyn Progress>,
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Chunk::Data(bytes)) => {
                    self.progress
                        .advance(u64::try_from(bytes.len()).unwrap_or(0));
                    self.current = bytes;
                }
                Some(Chunk::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream's archive was cut off",
                    ));
                }
            }
        }
        let count = self.current.len().min(buffer.len());
        if let Some(target) = buffer.get_mut(..count) {
            self.current.copy_to_slice(target);
        }
        Ok(count)
    }
}
