//! Reading packs, opening, decompressing, verifying; files written, then one flush of everything.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use aws_lc_rs::aead::Aad;
use aws_lc_rs::hmac;

use super::place::{Pack, Store};
use super::{CUT_BYTES, Place, THREADS, naming_key, nonce, seal_key};

/// A stretch of a file, and its chunks.
struct Stretch {
    path: PathBuf,
    from: u64,
    chunks: Vec<Place>,
}

pub(super) fn restore(store: &Store, folder: &Path) -> anyhow::Result<()> {
    let (folders, stretches) = read_list(store)?;
    for path in &folders {
        std::fs::create_dir_all(folder.join(path))?;
    }
    let packs = stretches.iter().flat_map(|stretch| &stretch.chunks);
    store.fetch(packs.map(|place| place.pack + 1).max().unwrap_or(0));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| work(store, folder, &stretches, &next)))
            .collect();
        for worker in workers {
            worker.join().ok().context("a thread failed")??;
        }
        anyhow::Ok(())
    })?;
    rustix::fs::syncfs(File::open(folder)?)?;
    Ok(())
}

fn read_list(store: &Store) -> anyhow::Result<(Vec<PathBuf>, Vec<Stretch>)> {
    let (mut folders, mut stretches) = (Vec::new(), Vec::<Stretch>::new());
    let list = String::from_utf8(store.get("list")?)?;
    for line in list.lines() {
        if let Some(path) = line.strip_prefix("folder ") {
            folders.push(path.into());
        } else if let Some(rest) = line.strip_prefix("file ") {
            let (from, path) = rest.split_once(' ').context("a line is too short")?;
            stretches.push(Stretch {
                path: path.into(),
                from: from.parse()?,
                chunks: Vec::new(),
            });
        } else {
            let stretch = stretches.last_mut().context("a chunk of no file")?;
            stretch.chunks.push(line.parse()?);
        }
    }
    Ok((folders, stretches))
}

fn work(
    store: &Store,
    folder: &Path,
    stretches: &[Stretch],
    next: &AtomicUsize,
) -> anyhow::Result<()> {
    let (seal, naming) = (seal_key()?, naming_key());
    let mut zstd = zstd::bulk::Decompressor::new()?;
    let mut pack: Option<(u32, Pack)> = None;
    let (mut sealed, mut data) = (Vec::new(), vec![0; CUT_BYTES.2]);
    while let Some(stretch) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(&stretch.path))?;
        let mut at = stretch.from;
        for place in &stretch.chunks {
            if pack
                .as_ref()
                .is_none_or(|(number, _)| *number != place.pack)
            {
                pack = Some((place.pack, store.pack(place.pack)?));
            }
            let (_, source) = pack.as_ref().context("no pack")?;
            sealed.resize(place.stored, 0);
            source.read(&mut sealed, place.offset)?;
            let opened = seal
                .open_in_place(
                    nonce(place.pack, place.frame),
                    Aad::from(place.name),
                    &mut sealed,
                )
                .ok()
                .context("a chunk does not open")?;
            let content = if place.packed {
                let length = zstd.decompress_to_buffer(opened, &mut data[..])?;
                data.get(..length).unwrap_or_default()
            } else {
                opened
            };
            ensure!(content.len() == place.length, "a chunk has another length");
            hmac::verify(&naming, content, &place.name)
                .ok()
                .context("not that chunk")?;
            std::hint::black_box(crc32c::crc32c(content));
            file.write_all_at(content, at)?;
            at += u64::try_from(content.len())?;
        }
    }
    Ok(())
}
