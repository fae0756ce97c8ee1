//! Streams are captured and restored by a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fmt::Write;
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull, stream};
use dr_model::Silent;
use dr_sources::instance::{NatsInstance, RunAs, free_port, give};
use dr_sources::nats::{
    IfExists, StreamSnapshot, capture_stream, position, restore, snapshot_path, stream_exists,
};
use dr_sources::{ContentKind, Item, ItemSink, SinkError, SourceError};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

const MESSAGES: u64 = 5000;

#[derive(Default)]
struct Kept(Mutex<Vec<(String, Vec<u8>)>>, Mutex<Vec<String>>);

impl ItemSink for Kept {
    fn file(&self, item: &Item, content: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
        let mut bytes = Vec::new();
        if let Err(error) = content.read_to_end(&mut bytes) {
            self.1.lock().unwrap().push(error.to_string());
            return Err(error.into());
        }
        self.0.lock().unwrap().push((item.path.clone(), bytes));
        Ok(())
    }

    fn entry(&self, _: &Item) -> Result<(), SinkError> {
        Err("a stream has only an archive".into())
    }
}

struct Broker {
    instance: NatsInstance,
    _folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-nats")
            .tempdir()
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        let store = folder.path().join("store");
        let instance = NatsInstance::start(&store, free_port(), run_as.as_ref()).unwrap();
        Self {
            instance,
            _folder: folder,
        }
    }

    fn url(&self) -> String {
        self.instance.url()
    }

    async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.url()).await.unwrap())
    }

    /// A stream of `MESSAGES` with durable consumer `warehouse`, which acknowledged the first `acked`.
    async fn fill(&self, acked: usize) {
        let jetstream = self.jetstream().await;
        let config = stream::Config {
            name: "ORDERS".to_owned(),
            subjects: vec!["orders.>".to_owned()],
            description: Some("order events".to_owned()),
            ..stream::Config::default()
        };
        let stream = jetstream.create_stream(config).await.unwrap();
        let mut acks = Vec::new();
        for number in 1..=MESSAGES {
            let body = format!("order {number} {}", noise(number));
            acks.push(
                jetstream
                    .publish(format!("orders.T{}", number % 7), body.into())
                    .await
                    .unwrap(),
            );
        }
        for ack in acks {
            ack.await.unwrap();
        }
        let consumer = stream
            .create_consumer(pull::Config {
                durable_name: Some("warehouse".to_owned()),
                ..pull::Config::default()
            })
            .await
            .unwrap();
        let mut messages = consumer
            .fetch()
            .max_messages(acked)
            .messages()
            .await
            .unwrap();
        while let Some(message) = messages.next().await {
            message.unwrap().double_ack().await.unwrap();
        }
    }

    async fn capture(&self) -> (StreamSnapshot, Vec<u8>) {
        let kept = Arc::new(Kept::default());
        let cancel = CancellationToken::new();
        let snapshot = capture_stream(
            &self.url(),
            "ORDERS",
            kept.clone(),
            Arc::new(Silent),
            &cancel,
        )
        .await;
        let files = std::mem::take(&mut *kept.0.lock().unwrap());
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].0, snapshot_path("ORDERS"));
        (snapshot.unwrap(), files[0].1.clone())
    }

    async fn restore(
        &self,
        snapshot: &StreamSnapshot,
        archive: &[u8],
        if_exists: IfExists,
    ) -> Result<dr_model::StreamPosition, SourceError> {
        let mut archive = Cursor::new(archive);
        restore(
            &self.url(),
            snapshot,
            &mut archive,
            if_exists,
            &CancellationToken::new(),
        )
        .await
    }

    /// The sequences that the durable consumer still gets.
    async fn consume_rest(&self) -> Vec<u64> {
        let consumer: jetstream::consumer::PullConsumer = self
            .jetstream()
            .await
            .get_consumer_from_stream("warehouse", "ORDERS")
            .await
            .unwrap();
        let mut found = Vec::new();
        loop {
            let mut batch = consumer
                .fetch()
                .max_messages(1000)
                .messages()
                .await
                .unwrap();
            let before = found.len();
            while let Some(message) = batch.next().await {
                let message = message.unwrap();
                let sequence = message.info().unwrap().stream_sequence;
                let text = String::from_utf8(message.payload.to_vec()).unwrap();
                assert!(text.starts_with(&format!("order {sequence} ")), "{text}");
                assert_eq!(
                    message.subject.as_str(),
                    format!("orders.T{}", sequence % 7)
                );
                message.double_ack().await.unwrap();
                found.push(sequence);
            }
            if found.len() == before {
                return found;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_comes_back_and_its_consumer_goes_on() {
    let broker = Broker::start();
    broker.fill(1200).await;
    let before = position(&broker.url(), "ORDERS").await.unwrap();
    assert_eq!(
        (before.messages, before.last_sequence),
        (MESSAGES, MESSAGES)
    );
    assert_eq!(before.consumers["warehouse"], 1200);
    let (snapshot, archive) = broker.capture().await;
    assert_eq!(snapshot.position, before);
    assert_eq!(snapshot.archive_bytes, archive.len() as u64);

    // What was captured is stored as JSON beside the archive.
    let json = serde_json::to_string(&snapshot).unwrap();
    let snapshot: StreamSnapshot = serde_json::from_str(&json).unwrap();

    broker
        .jetstream()
        .await
        .delete_stream("ORDERS")
        .await
        .unwrap();
    assert!(!stream_exists(&broker.url(), "ORDERS").await.unwrap());
    let after = broker
        .restore(&snapshot, &archive, IfExists::Refuse)
        .await
        .unwrap();
    assert_eq!(after, before);
    let mut stream = broker.jetstream().await.get_stream("ORDERS").await.unwrap();
    let description = stream.info().await.unwrap().config.description.clone();
    assert_eq!(description.as_deref(), Some("order events"));
    assert_eq!(
        broker.consume_rest().await,
        (1201..=MESSAGES).collect::<Vec<_>>()
    );
    // New messages follow the old ones.
    let jetstream = broker.jetstream().await;
    let ack = jetstream
        .publish("orders.T1", "order 5001 ".into())
        .await
        .unwrap();
    assert_eq!(ack.await.unwrap().sequence, MESSAGES + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_stream_is_replaced_only_when_asked_for() {
    let broker = Broker::start();
    broker.fill(10).await;
    let (snapshot, archive) = broker.capture().await;
    broker.consume_rest().await;
    let refused = broker
        .restore(&snapshot, &archive, IfExists::Refuse)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("has a stream `ORDERS` already"),
        "{refused}"
    );
    assert_eq!(
        position(&broker.url(), "ORDERS").await.unwrap().consumers["warehouse"],
        MESSAGES
    );
    // A damaged archive is found before the existing stream is deleted.
    let mut damaged = archive.clone();
    damaged[archive.len() / 2] ^= 1;
    let refused = broker
        .restore(&snapshot, &damaged, IfExists::Replace)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert_eq!(
        position(&broker.url(), "ORDERS").await.unwrap().messages,
        MESSAGES
    );
    let after = broker
        .restore(&snapshot, &archive, IfExists::Replace)
        .await
        .unwrap();
    assert_eq!(after.consumers["warehouse"], 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_archive_leaves_nothing_half_done() {
    let broker = Broker::start();
    broker.fill(10).await;
    let (snapshot, archive) = broker.capture().await;
    broker
        .jetstream()
        .await
        .delete_stream("ORDERS")
        .await
        .unwrap();
    let half = &archive[..archive.len() / 2];
    let refused = broker
        .restore(&snapshot, half, IfExists::Refuse)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert!(!stream_exists(&broker.url(), "ORDERS").await.unwrap());
    // The same when our own record says that it is whole: then the server or the comparison says no.
    for cut in [archive.len() / 2, archive.len() - 1, archive.len() * 9 / 10] {
        let cut = &archive[..cut];
        let mut lying = snapshot.clone();
        lying.archive_bytes = cut.len() as u64;
        lying.archive_sha256 = sha256(cut);
        let refused = broker.restore(&lying, cut, IfExists::Refuse).await;
        assert!(
            refused.is_err(),
            "an archive cut to {} bytes was restored",
            cut.len()
        );
        assert!(!stream_exists(&broker.url(), "ORDERS").await.unwrap());
    }
    let other_server_state = serde_json::json!({ "name": "ORDERS", "subjects": ["orders.>"] });
    let wrong = StreamSnapshot {
        config: other_server_state,
        ..snapshot.clone()
    };
    drop(broker.restore(&wrong, &archive, IfExists::Refuse).await);
    // After all of that, the whole one still can be restored.
    broker
        .restore(&snapshot, &archive, IfExists::Replace)
        .await
        .unwrap();
    assert_eq!(broker.consume_rest().await.len() as u64, MESSAGES - 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_not_what_was_captured_is_removed() {
    let broker = Broker::start();
    broker.fill(10).await;
    let (snapshot, archive) = broker.capture().await;
    broker
        .jetstream()
        .await
        .delete_stream("ORDERS")
        .await
        .unwrap();
    let mut more = snapshot.clone();
    more.position.messages += 1;
    more.position.consumers.insert("lost".to_owned(), 3);
    let refused = broker
        .restore(&more, &archive, IfExists::Refuse)
        .await
        .unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("5000 messages instead of 5001"), "{text}");
    assert!(text.contains("consumer `lost` is missing"), "{text}");
    assert!(!stream_exists(&broker.url(), "ORDERS").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_under_load_is_captured_as_a_prefix() {
    let broker = Broker::start();
    broker.fill(100).await;
    let stop = CancellationToken::new();
    let jetstream = broker.jetstream().await;
    let load = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut number = MESSAGES;
            while !stop.is_cancelled() {
                number += 1;
                let subject = format!("orders.T{}", number % 7);
                let ack = jetstream
                    .publish(subject, format!("order {number} ").into())
                    .await
                    .unwrap();
                ack.await.unwrap();
            }
        }
    });
    let (snapshot, archive) = broker.capture().await;
    stop.cancel();
    load.await.unwrap();
    let after = broker
        .restore(&snapshot, &archive, IfExists::Replace)
        .await
        .unwrap();
    assert!(after.last_sequence >= snapshot.position.last_sequence);
    let rest = broker.consume_rest().await;
    assert_eq!(rest, (101..=after.last_sequence).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let broker = Broker::start();
    let cancel = CancellationToken::new();
    let capture = |stream: &'static str, url: String| {
        let cancel = cancel.clone();
        async move {
            let kept = Arc::new(Kept::default());
            let result =
                capture_stream(&url, stream, kept.clone(), Arc::new(Silent), &cancel).await;
            assert!(
                kept.0.lock().unwrap().is_empty(),
                "the sink took a stream that was not captured"
            );
            assert_eq!(
                kept.1.lock().unwrap().len(),
                1,
                "the sink was not told of the cut"
            );
            result.unwrap_err()
        }
    };
    let none = capture("ORDERS", broker.url()).await.to_string();
    assert!(none.contains("no stream `ORDERS`: it has none"), "{none}");
    broker.fill(1).await;
    let other = capture("ORDRES", broker.url()).await.to_string();
    assert!(
        other.contains("no stream `ORDRES`: it has ORDERS"),
        "{other}"
    );
    let url = broker.url();
    broker.instance.kill_all();
    let down = tokio::time::timeout(Duration::from_secs(20), capture("ORDERS", url))
        .await
        .unwrap();
    assert!(down.to_string().contains("could not be reached"), "{down}");
    assert!(down.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_the_middle_fails_the_capture() {
    let broker = Broker::start();
    broker.fill(1).await;
    struct Stalling(
        std::sync::mpsc::Sender<()>,
        Mutex<std::sync::mpsc::Receiver<()>>,
    );
    impl ItemSink for Stalling {
        fn file(&self, _: &Item, content: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
            content.read_exact(&mut [0; 10])?;
            self.0.send(())?;
            self.1.lock().unwrap().recv()?;
            std::io::copy(content, &mut std::io::sink())
                .map(|_| ())
                .map_err(Into::into)
        }
        fn entry(&self, _: &Item) -> Result<(), SinkError> {
            Ok(())
        }
    }
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let url = broker.url();
    let capturing = tokio::spawn(async move {
        let sink = Arc::new(Stalling(begun, Mutex::new(may_go_on)));
        let cancel = CancellationToken::new();
        capture_stream(&url, "ORDERS", sink, Arc::new(Silent), &cancel).await
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
        .await
        .unwrap();
    broker.instance.kill_all();
    go_on.send(()).unwrap();
    let result = tokio::time::timeout(Duration::from_secs(90), capturing)
        .await
        .unwrap()
        .unwrap();
    // More than what fits between server and sink was still to come.
    let error = result.unwrap_err().to_string();
    assert!(error.contains("ORDERS"), "{error}");
}

#[test]
fn an_instance_is_found_again_and_stopped() {
    let broker = Broker::start();
    let store = broker.instance.store_directory().to_owned();
    let pid = broker.instance.pid();
    let Broker {
        instance,
        _folder: folder,
    } = broker;
    instance.leave_running();
    let found = NatsInstance::attach(&store).unwrap();
    assert_eq!(found.pid(), pid);
    found.stop().unwrap();
    assert!(matches!(
        NatsInstance::attach(&store),
        Err(SourceError::NotRunning { .. })
    ));
    // A port that is taken is an error with the server's own words.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let run_as = RunAs::for_postgres().unwrap();
    let error = NatsInstance::start(&store, port, run_as.as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("address already in use"),
        "{error}"
    );
    drop(folder);
}

/// Up to 2 KiB of text that does not compress well.
fn noise(number: u64) -> String {
    let mut text = String::new();
    let mut state = number * 2 + 1;
    for _ in 0..number % 128 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        write!(text, "{state:016x}").unwrap();
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
