//! The floor of the benchmark: only the stages that no backup program can do without.
//!
//! `backup FOLDER REPOSITORY` walks the folder, reads every file, cuts it, names and deduplicates the
//! chunks, compresses, seals, and writes packs that it flushes, with the parameters of the product.
//! `restore REPOSITORY FOLDER` reads, opens, decompresses, verifies, writes, and flushes the file
//! system. A REPOSITORY is a folder, or `http://ADDRESS/BUCKET/PREFIX` of a store behind the S3 protocol. `scan FOLDER` examines every entry, which is what a second backup cannot do without.
//! There is no index, no encrypted listing, no session, no catalog, no key file, no error handling
//! worth the name, and nobody should store anything with it.
//!
//! Two threads work, as many as the benchmark's processors; a third waits for the disk.

#![allow(clippy::print_stdout, reason = "a measuring program")]

mod keep;
mod place;
mod put_back;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, bail};
use aws_lc_rs::{aead, hmac};
use place::Store;

/// Threads that compute.
const THREADS: usize = 2;
/// Cutting by content: smallest, average, largest chunk.
const CUT_BYTES: (usize, usize, usize) = (128 << 10, 512 << 10, 2 << 20);
const PACK_BYTES: usize = 16 << 20;

/// Where a chunk lies.
#[derive(Clone)]
struct Place {
    name: [u8; 32],
    pack: u32,
    frame: u32,
    offset: usize,
    stored: usize,
    length: usize,
    /// Whether it is compressed.
    packed: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            pack,
            frame,
            offset,
            stored,
            length,
            packed,
        } = self;
        let name = hex::encode(name);
        write!(
            f,
            "{name} {pack} {frame} {offset} {stored} {length} {packed}"
        )
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a line is too short");
        let mut name = [0; 32];
        hex::decode_to_slice(word()?, &mut name)?;
        Ok(Self {
            name,
            pack: word()?.parse()?,
            frame: word()?.parse()?,
            offset: word()?.parse()?,
            stored: word()?.parse()?,
            length: word()?.parse()?,
            packed: word()?.parse()?,
        })
    }
}

/// zstd as the product sets it.
fn compressor() -> anyhow::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::HashLog(14))?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::MinMatch(5))?;
    Ok(compressor)
}

/// Fixed keys: it is a measurement.
fn seal_key() -> anyhow::Result<aead::LessSafeKey> {
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, &[7; 32]);
    Ok(aead::LessSafeKey::new(key.ok().context("no key")?))
}

fn naming_key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &[9; 32])
}

fn nonce(pack: u32, frame: u32) -> aead::Nonce {
    let mut bytes = [0; 12];
    for (to, from) in bytes
        .iter_mut()
        .zip(pack.to_le_bytes().into_iter().chain(frame.to_le_bytes()))
    {
        *to = from;
    }
    aead::Nonce::assume_unique_for_key(bytes)
}

/// Regular files and folders below `folder`, in order.
fn walk(
    folder: &Path,
    files: &mut Vec<(PathBuf, u64)>,
    folders: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    folders.push(folder.to_owned());
    let mut names = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    names.sort();
    for path in names {
        let metadata = std::fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            walk(&path, files, folders)?;
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let began = Instant::now();
    match words.as_slice() {
        ["backup", folder, repository] => keep::backup(folder.as_ref(), &Store::open(repository)?)?,
        ["restore", repository, folder] => {
            put_back::restore(&Store::open(repository)?, folder.as_ref())?;
        }
        ["scan", folder] => walk(folder.as_ref(), &mut Vec::new(), &mut Vec::new())?,
        _ => bail!("floor backup FOLDER REPOSITORY | restore REPOSITORY FOLDER | scan FOLDER"),
    }
    println!("{:.3} s", began.elapsed().as_secs_f64());
    Ok(())
}
