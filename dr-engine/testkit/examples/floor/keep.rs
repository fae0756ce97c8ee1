//! Reading, cutting, naming, compressing, sealing; packs written and flushed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::hmac;
use fastcdc::v2020::{FastCDC, Normalization};

use super::place::Store;
use super::{CUT_BYTES, PACK_BYTES, Place, THREADS, compressor, naming_key, nonce, seal_key, walk};

/// A stretch of a file that one thread works on. Long files are shared out.
const STRETCH_BYTES: u64 = 64 << 20;

/// A stretch of a file that one thread takes.
struct Task {
    path: PathBuf,
    from: u64,
    length: u64,
}

/// The chunks of each finished task, by its number.
type Placed = Mutex<Vec<(usize, Vec<Place>)>>;

pub(super) fn backup(folder: &Path, store: &Store) -> anyhow::Result<()> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    walk(folder, &mut files, &mut folders)?;
    let mut tasks = Vec::new();
    for (path, size) in &files {
        let mut from = 0;
        while from == 0 || from < *size {
            let length = STRETCH_BYTES.min(size - from);
            tasks.push(Task {
                path: path.clone(),
                from,
                length,
            });
            from += STRETCH_BYTES;
        }
    }
    // Long ones first, so that no thread is left with one at the end.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.length));
    store.create()?;
    let (next, packs, seen) = (
        AtomicUsize::new(0),
        AtomicU32::new(0),
        Mutex::new(HashMap::new()),
    );
    let placed = Placed::default();
    let (send, receive) = sync_channel::<(u32, Vec<u8>)>(2);
    // With the last writer that fails the way to them ends, and the workers do too.
    let receive = Arc::new(Mutex::new(receive));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..store.writers())
            .map(|_| {
                let receive = Arc::clone(&receive);
                scope.spawn(move || -> anyhow::Result<()> {
                    loop {
                        let Ok((number, pack)) = lock(&receive).recv() else {
                            return Ok(());
                        };
                        store.put(&number.to_string(), pack)?;
                    }
                })
            })
            .collect();
        drop(receive);
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                let send = send.clone();
                scope.spawn(|| work(&tasks, &next, &packs, &seen, &placed, send))
            })
            .collect();
        drop(send);
        for worker in workers {
            worker.join().ok().context("a thread failed")??;
        }
        for writer in writers {
            writer.join().ok().context("a writer failed")??;
        }
        anyhow::Ok(())
    })?;
    write_list(folder, store, &folders, &tasks, placed)
}

fn work(
    tasks: &[Task],
    next: &AtomicUsize,
    packs: &AtomicU32,
    seen: &Mutex<HashMap<[u8; 32], Place>>,
    placed: &Placed,
    send: SyncSender<(u32, Vec<u8>)>,
) -> anyhow::Result<()> {
    let (seal, naming, mut zstd) = (seal_key()?, naming_key(), compressor()?);
    let mut input = Vec::new();
    let mut frame = vec![0; zstd::zstd_safe::compress_bound(CUT_BYTES.2)];
    let (mut pack, mut number, mut frames) = (Vec::new(), packs.fetch_add(1, Ordering::Relaxed), 0);
    loop {
        let task_number = next.fetch_add(1, Ordering::Relaxed);
        let Some(task) = tasks.get(task_number) else {
            send.send((number, pack))?;
            return Ok(());
        };
        read(task, &mut input)?;
        std::hint::black_box(crc32c::crc32c(&input));
        let mut places = Vec::new();
        for data in cut(&input) {
            let mut name = [0; 32];
            name.copy_from_slice(hmac::sign(&naming, data).as_ref());
            if let Some(place) = lock(seen).get(&name) {
                places.push(place.clone());
                continue;
            }
            let length = zstd.compress_to_buffer(data, &mut frame[..])?;
            let packed = length < data.len();
            let offset = pack.len();
            pack.extend_from_slice(if packed {
                frame.get(..length).unwrap_or_default()
            } else {
                data
            });
            let sealed = pack.get_mut(offset..).unwrap_or_default();
            let tag =
                seal.seal_in_place_separate_tag(nonce(number, frames), Aad::from(name), sealed);
            pack.extend_from_slice(tag.ok().context("not sealed")?.as_ref());
            let stored = pack.len() - offset;
            let place = Place {
                name,
                pack: number,
                frame: frames,
                offset,
                stored,
                length: data.len(),
                packed,
            };
            lock(seen).insert(name, place.clone());
            places.push(place);
            frames += 1;
            if pack.len() >= PACK_BYTES {
                let full =
                    std::mem::replace(&mut pack, Vec::with_capacity(PACK_BYTES + CUT_BYTES.2));
                send.send((number, full))?;
                number = packs.fetch_add(1, Ordering::Relaxed);
                frames = 0;
            }
        }
        lock(placed).push((task_number, places));
    }
}

/// A file shorter than the smallest chunk is one chunk; nothing needs to look for a place to cut.
fn cut(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (min, average, max) = CUT_BYTES;
    FastCDC::with_level_and_seed(input, min, average, max, Normalization::Level1, 7)
        .filter_map(|chunk| input.get(chunk.offset..chunk.offset + chunk.length))
}

/// The list of folders, stretches and their chunks, for `restore`: text, and not the product's.
fn write_list(
    source: &Path,
    store: &Store,
    folders: &[PathBuf],
    tasks: &[Task],
    placed: Placed,
) -> anyhow::Result<()> {
    let mut list = Vec::new();
    for folder in folders {
        writeln!(list, "folder {}", folder.strip_prefix(source)?.display())?;
    }
    for (number, places) in placed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let task = tasks.get(number).context("no such task")?;
        writeln!(
            list,
            "file {} {}",
            task.from,
            task.path.strip_prefix(source)?.display()
        )?;
        for place in places {
            writeln!(list, "{place}")?;
        }
    }
    store.put("list", list)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(task: &Task, input: &mut Vec<u8>) -> anyhow::Result<()> {
    input.clear();
    let mut file = File::open(&task.path)?;
    if task.from > 0 {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(task.from))?;
    }
    file.take(task.length).read_to_end(input)?;
    Ok(())
}
