//! Where the packs lie: a folder, or a bucket behind the S3 protocol, used by its bare client.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_types::base64;
use dr_testkit::{ACCESS_KEY, SECRET_KEY};
use md5::{Digest, Md5};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// As many as the product has.
const FETCHES_AT_ONCE: usize = 4;

/// A folder, or `http://ADDRESS/BUCKET/PREFIX`.
pub(super) enum Store {
    Folder(PathBuf),
    Bucket(Bucket),
}

pub(super) struct Bucket {
    client: Client,
    name: String,
    prefix: String,
    runtime: Runtime,
    fetched: Arc<Fetched>,
}

/// Packs that came. All stay: it is a measurement.
#[derive(Default)]
struct Fetched {
    packs: Mutex<HashMap<u32, Arc<Vec<u8>>>>,
    came: Condvar,
}

pub(super) enum Pack {
    File(File),
    Bytes(Arc<Vec<u8>>),
}

impl Store {
    pub(super) fn open(place: &str) -> anyhow::Result<Self> {
        if !place.starts_with("http://") {
            return Ok(Self::Folder(place.into()));
        }
        let (rest, prefix) = place.rsplit_once('/').context("no prefix")?;
        let (endpoint, name) = rest.rsplit_once('/').context("no bucket")?;
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new(
                ACCESS_KEY, SECRET_KEY, None, None, "bench",
            ))
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let client = Client::from_conf(config);
        Ok(Self::Bucket(Bucket {
            client,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            runtime,
            fetched: Arc::default(),
        }))
    }

    pub(super) fn create(&self) -> anyhow::Result<()> {
        if let Self::Folder(folder) = self {
            std::fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    /// Threads that wait for packs to be stored: as many as the product has.
    pub(super) fn writers(&self) -> usize {
        match self {
            Self::Folder(_) => 1,
            Self::Bucket(_) => 4,
        }
    }

    pub(super) fn put(&self, name: &str, body: Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => write_file(folder, name, &body),
            Self::Bucket(bucket) => bucket.runtime.block_on(bucket.put(name, body)),
        }
    }

    pub(super) fn get(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Folder(folder) => Ok(std::fs::read(folder.join(name))?),
            Self::Bucket(bucket) => {
                let request = bucket
                    .client
                    .get_object()
                    .bucket(&bucket.name)
                    .key(bucket.key(name));
                bucket.runtime.block_on(async {
                    let answer = request.send().await?;
                    Ok(answer.body.collect().await?.to_vec())
                })
            }
        }
    }

    /// Fetches so many packs in their order, some at once, as far as `read` does not have them by itself.
    pub(super) fn fetch(&self, packs: u32) {
        let Self::Bucket(bucket) = self else { return };
        let turns = Arc::new(Semaphore::new(FETCHES_AT_ONCE));
        for pack in 0..packs {
            let (fetched, turns) = (Arc::clone(&bucket.fetched), Arc::clone(&turns));
            let request = bucket.client.get_object().bucket(&bucket.name);
            let request = request.key(bucket.key(&pack.to_string()));
            bucket.runtime.spawn(async move {
                let _turn = turns.acquire().await;
                let bytes = async {
                    let mut answer = request.send().await?;
                    let mut bytes = Vec::new();
                    while let Some(piece) = answer.body.next().await {
                        bytes.extend_from_slice(&piece?);
                    }
                    anyhow::Ok(bytes)
                };
                // An empty pack fails whoever reads it.
                let bytes = bytes.await.unwrap_or_default();
                lock(&fetched.packs).insert(pack, Arc::new(bytes));
                fetched.came.notify_all();
            });
        }
    }

    /// What is needed to read a pack.
    pub(super) fn pack(&self, pack: u32) -> anyhow::Result<Pack> {
        match self {
            Self::Folder(folder) => Ok(Pack::File(File::open(folder.join(pack.to_string()))?)),
            Self::Bucket(bucket) => {
                let mut packs = lock(&bucket.fetched.packs);
                loop {
                    if let Some(found) = packs.get(&pack) {
                        return Ok(Pack::Bytes(Arc::clone(found)));
                    }
                    packs = bucket.fetched.came.wait(packs).ok().context("poisoned")?;
                }
            }
        }
    }
}

impl Pack {
    pub(super) fn read(&self, sealed: &mut [u8], offset: usize) -> anyhow::Result<()> {
        match self {
            Self::File(file) => Ok(file.read_exact_at(sealed, u64::try_from(offset)?)?),
            Self::Bytes(bytes) => {
                let found = bytes.get(offset..offset + sealed.len());
                sealed.copy_from_slice(found.context("the store sent too little")?);
                Ok(())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bucket {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// With both sums, as the product sends them. The body is not signed, which is a little less than the
    /// product does: a floor may be low.
    async fn put(&self, name: &str, body: Vec<u8>) -> anyhow::Result<()> {
        let md5 = base64::encode(Md5::digest(&body));
        let sha256 = base64::encode(digest(&SHA256, &body));
        self.client
            .put_object()
            .bucket(&self.name)
            .key(self.key(name))
            .content_md5(md5)
            .checksum_sha256(sha256)
            .if_none_match("*")
            .body(ByteStream::from(body))
            .customize()
            .disable_payload_signing()
            .send()
            .await?;
        Ok(())
    }
}

fn write_file(folder: &Path, name: &str, body: &[u8]) -> anyhow::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    std::io::Write::write_all(&mut file, body)?;
    file.sync_all()?;
    std::fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
