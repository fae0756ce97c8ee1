//! The objects of the server, as files.
//!
//! The library's file system reads an object in steps of 4 KiB and parses two small files beside it for
//! every part that is asked for. A store does neither, and who measures a client must not measure that:
//! here a part is read in one go, and the ETag is remembered for as long as the file is the same.

use std::collections::HashMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, ETag, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    ListPartsInput, ListPartsOutput, PutObjectInput, PutObjectOutput, Range, StreamingBlob,
    Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// What changes with a file's content: its inode, length and time.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
pub(super) struct Files {
    inner: FileSystem,
    root: PathBuf,
    sums: Mutex<HashMap<PathBuf, (Stamp, ETag)>>,
}

/// A part of a file, and what is to be said of it.
struct Read {
    bytes: Vec<u8>,
    stamp: Stamp,
    content_range: Option<String>,
    modified: Timestamp,
}

impl Files {
    pub(super) fn new(root: &Path) -> anyhow::Result<Self> {
        let inner = FileSystem::new(root)
            .map_err(|error| anyhow::anyhow!("the S3 folder is refused: {error:?}"))?;
        Ok(Self {
            inner,
            root: root.to_owned(),
            sums: Mutex::default(),
        })
    }

    /// The library looks at the key; what it refuses was never stored.
    fn path(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        let plain = key.split('/').all(|part| !matches!(part, "" | "." | ".."));
        plain.then(|| self.root.join(bucket).join(key))
    }

    fn known_sum(&self, path: &Path, stamp: Stamp) -> Option<ETag> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, sum) = sums.get(path)?;
        (*of == stamp).then(|| sum.clone())
    }

    fn learn_sum(&self, path: PathBuf, stamp: Stamp, sum: ETag) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.insert(path, (stamp, sum));
    }
}

fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// `None` where the library is to answer: the file or the part is not there.
fn read(path: &Path, range: Option<Range>) -> Option<Read> {
    let file = std::fs::File::open(path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let all = metadata.len();
    let part = match range {
        Some(range) => range.check(all).ok()?,
        None => 0..all,
    };
    let mut bytes = vec![0; usize::try_from(part.end - part.start).ok()?];
    file.read_exact_at(&mut bytes, part.start).ok()?;
    let content_range = range.map(|_| format!("bytes {}-{}/{all}", part.start, part.end - 1));
    Some(Read {
        bytes,
        stamp: stamp_of(&metadata),
        content_range,
        modified: metadata.modified().ok()?.into(),
    })
}

/// What is answered by the library's own.
macro_rules! handed_on {
    ($($name:ident: $input:ty => $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.inner.$name(request).await
            })*

            async fn put_object(
                &self,
                request: S3Request<PutObjectInput>,
            ) -> S3Result<S3Response<PutObjectOutput>> {
                self.put(request).await
            }

            async fn get_object(
                &self,
                request: S3Request<GetObjectInput>,
            ) -> S3Result<S3Response<GetObjectOutput>> {
                self.get(request).await
            }
        }
    };
}

handed_on! {
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput;
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput;
    delete_object: DeleteObjectInput => DeleteObjectOutput;
    head_bucket: HeadBucketInput => HeadBucketOutput;
    head_object: HeadObjectInput => HeadObjectOutput;
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output;
    list_parts: ListPartsInput => ListPartsOutput;
    upload_part: UploadPartInput => UploadPartOutput;
}

impl Files {
    async fn put(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let path = self.path(&request.input.bucket, &request.input.key);
        let answer = self.inner.put_object(request).await?;
        if let (Some(path), Some(sum)) = (path, &answer.output.e_tag)
            && let Ok(metadata) = std::fs::metadata(&path)
        {
            self.learn_sum(path, stamp_of(&metadata), sum.clone());
        }
        Ok(answer)
    }

    async fn get(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &request.input;
        let (path, range) = (self.path(&input.bucket, &input.key), input.range);
        let from = path.clone();
        let reading = tokio::task::spawn_blocking(move || read(&from?, range));
        let (Some(path), Ok(Some(found))) = (path, reading.await) else {
            return self.inner.get_object(request).await;
        };
        let length = i64::try_from(found.bytes.len())
            .map_err(|_| s3_error!(InternalError, "the object is too long"))?;
        let body = Some(StreamingBlob::from(Body::from(found.bytes)));
        let Some(sum) = self.known_sum(&path, found.stamp) else {
            // The body is what was read here, and so is what is said of it.
            let mut answer = self.inner.get_object(request).await?;
            answer.output.body = body;
            answer.output.content_length = Some(length);
            answer.output.content_range = found.content_range;
            answer.output.last_modified = Some(found.modified);
            return Ok(answer);
        };
        Ok(S3Response::new(GetObjectOutput {
            body,
            content_length: Some(length),
            content_range: found.content_range,
            last_modified: Some(found.modified),
            e_tag: Some(sum),
            ..GetObjectOutput::default()
        }))
    }
}
