//! An S3 protocol server within the process, over a folder.
//!
//! It speaks the real protocol (signatures, XML, errors) on a free loopback port. The library behind it
//! checks `If-None-Match`, then writes, so that several racing writers could win; here, as in a real
//! store, changes of one key happen one after the other, and a body that is refused leaves nothing. What
//! it does not have: versions, Object Lock.

mod files;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use files::Files;

/// The user it knows.
pub const ACCESS_KEY: &str = "test-access";
/// That user's secret.
pub const SECRET_KEY: &str = "test-secret";

/// One lock for each key that was ever changed.
#[derive(Debug, Default)]
struct KeyLocks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl KeyLocks {
    /// The lock of what this request changes; parts of an upload change nothing yet.
    fn of<B>(&self, request: &hyper::Request<B>) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let reads = matches!(request.method().as_str(), "GET" | "HEAD");
        let is_part = request
            .uri()
            .query()
            .unwrap_or_default()
            .contains("partNumber=");
        if reads || is_part {
            return None;
        }
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = request.uri().path().to_owned();
        Some(Arc::clone(locks.entry(key).or_default()))
    }
}

/// A running server; stops when dropped, and its folder goes with it.
#[derive(Debug)]
pub struct S3Server {
    folder: tempfile::TempDir,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server with one empty bucket.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(bucket: &str) -> anyhow::Result<Self> {
        Self::start_late(bucket, Duration::ZERO)
    }

    /// One that begins to work on each request so much later, as one far away does.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_late(bucket: &str, latency: Duration) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let mut service = S3ServiceBuilder::new(Files::new(folder.path())?);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let locks = Arc::new(KeyLocks::default());
        let root = folder.path().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (stop, mut stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let http = Builder::new(TokioExecutor::new());
                    loop {
                        let socket = tokio::select! {
                            accepted = listener.accept() => accepted,
                            _ = &mut stopped => break,
                        };
                        let Ok((socket, _)) = socket else { continue };
                        let (service, locks) = (service.clone(), Arc::clone(&locks));
                        let root = root.clone();
                        let atomic = service_fn(move |request: hyper::Request<Incoming>| {
                            let lock = locks.of(&request);
                            let service = service.clone();
                            let object = root.join(request.uri().path().trim_start_matches('/'));
                            async move {
                                if !latency.is_zero() {
                                    tokio::time::sleep(latency).await;
                                }
                                let _guard = match &lock {
                                    Some(lock) => Some(lock.lock().await),
                                    None => None,
                                };
                                let was_there = object.exists();
                                let answer = Service::call(&service, request).await;
                                let refused = answer
                                    .as_ref()
                                    .is_ok_and(|answer| answer.status().as_u16() == 400);
                                if lock.is_some() && refused && !was_there && object.is_file() {
                                    // What cannot be removed is found by the test that cares.
                                    let _ = std::fs::remove_file(&object);
                                }
                                answer
                            }
                        });
                        let connection = http
                            .serve_connection(TokioIo::new(socket), atomic)
                            .into_owned();
                        tokio::spawn(async move {
                            // A client that goes away is its own matter.
                            let _ = connection.await;
                        });
                    }
                });
            });
        let thread = thread.context("cannot start the server's thread")?;
        Ok(Self {
            folder,
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What a client calls.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the objects of a bucket lie as files, for tests that damage them.
    #[must_use]
    pub fn bucket_folder(&self, bucket: &str) -> PathBuf {
        self.folder.path().join(bucket)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The server may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
