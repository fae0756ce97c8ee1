//! The outbox relay: turns rows of the ERP's outbox into messages of a JetStream stream.
//!
//! Order of steps, for one event after the other: publish, wait for the stream's acknowledgement,
//! then mark the row as sent. A crash in between publishes the event again at the next start; the
//! message id lets the stream recognise it. Events leave in the order of their `outbox_id`; one relay
//! works at a time, guarded by an advisory lock of its session.
//!
//! The relay makes the stream when it starts and never again: a stream that is lost while it runs
//! has to be restored with its messages, and an empty one in its place would hide that. Until then
//! events wait in the outbox.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio_util::sync::CancellationToken;

use crate::DemoError;

/// The stream of order events.
pub const STREAM: &str = "ORDERS";
/// What its messages' subjects begin with; the tenant's code follows.
pub const SUBJECT_PREFIX: &str = "orders.";

/// Rows taken from the outbox at a time.
const BATCH: i64 = 200;
/// How long to wait when the outbox is empty.
const IDLE_WAIT: Duration = Duration::from_millis(100);
/// How long to wait after a failure before trying again.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// How long the stream remembers message ids: longer than a relay is ever down in the demo.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(15 * 60);
/// The advisory lock that keeps a second relay out: "relay" in ASCII.
const LOCK: i64 = 0x72_65_6C_61_79;

/// Where the relay reads and writes.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// The ERP's database.
    pub database_url: String,
    /// The message broker.
    pub nats_url: String,
}

/// Publishes events until `cancel` is triggered; gives the number it published. The database and the
/// broker may go away and come back meanwhile.
///
/// # Errors
/// When database or broker cannot be used at the start, or another relay runs.
pub async fn run(options: &RelayOptions, cancel: &CancellationToken) -> Result<u64, DemoError> {
    let context = jetstream(&options.nats_url).await?;
    ensure_stream(&context).await?;
    let mut connection = Some(open(&options.database_url).await?);
    let mut published = 0;
    while !cancel.is_cancelled() {
        let outcome = match &mut connection {
            Some(open) => publish_batch(open, &context, cancel).await,
            None => match open(&options.database_url).await {
                Ok(again) => {
                    connection = Some(again);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let wait = match outcome {
            Ok(0) => IDLE_WAIT,
            Ok(count) => {
                published += count;
                continue;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the relay tries again"
                );
                if matches!(error, DemoError::Sql { .. }) {
                    connection = None;
                }
                RETRY_WAIT
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Some(connection) = connection {
        // The session's end releases the lock either way.
        let _ = connection.close().await;
    }
    Ok(published)
}

/// Connects to the broker's JetStream.
pub(crate) async fn jetstream(url: &str) -> Result<jetstream::Context, DemoError> {
    let client = async_nats::ConnectOptions::new()
        .name("erp")
        .connect(url)
        .await
        .map_err(broker("connecting"))?;
    Ok(jetstream::new(client))
}

/// Makes the stream of order events if there is none.
pub(crate) async fn ensure_stream(context: &jetstream::Context) -> Result<(), DemoError> {
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{SUBJECT_PREFIX}>")],
        storage: stream::StorageType::File,
        duplicate_window: DUPLICATE_WINDOW,
        ..stream::Config::default()
    };
    context
        .get_or_create_stream(config)
        .await
        .map(|_| ())
        .map_err(broker("making the stream"))
}

pub(crate) fn broker<E>(what: &'static str) -> impl FnOnce(E) -> DemoError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| DemoError::Broker {
        what,
        source: source.into(),
    }
}

fn sql(what: &'static str) -> impl FnOnce(sqlx::Error) -> DemoError {
    move |source| DemoError::Sql { what, source }
}

async fn open(url: &str) -> Result<PgConnection, DemoError> {
    let mut connection = PgConnection::connect(url)
        .await
        .map_err(sql("connecting to the outbox"))?;
    let alone: bool = sqlx::query_scalar("select pg_catalog.pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut connection)
        .await
        .map_err(sql("taking the relay's lock"))?;
    if alone {
        Ok(connection)
    } else {
        Err(DemoError::SecondRelay)
    }
}

/// Publishes and marks what waits, up to one batch. Rows of transactions that commit late have small
/// ids and are found the next time: the unsent ones are asked for, not those after the last one.
async fn publish_batch(
    connection: &mut PgConnection,
    context: &jetstream::Context,
    cancel: &CancellationToken,
) -> Result<u64, DemoError> {
    let rows = sqlx::query(
        "select o.outbox_id, t.code, o.topic, o.payload, o.created_at::text as created \
         from public.outbox o join public.tenant t using (tenant_id) \
         where o.sent_at is null order by o.outbox_id limit $1",
    )
    .bind(BATCH)
    .fetch_all(&mut *connection)
    .await
    .map_err(sql("reading the outbox"))?;
    let mut count = 0;
    for row in rows {
        if cancel.is_cancelled() {
            break;
        }
        let event = Event::of(&row).map_err(sql("reading the outbox"))?;
        event.publish(context).await?;
        sqlx::query(
            "update public.outbox set sent_at = pg_catalog.now() where outbox_id = $1 and sent_at is null",
        )
        .bind(event.outbox_id)
        .execute(&mut *connection)
        .await
        .map_err(sql("marking an event as sent"))?;
        count += 1;
    }
    Ok(count)
}

struct Event {
    outbox_id: i64,
    tenant: String,
    topic: String,
    payload: Value,
    created: String,
}

impl Event {
    fn of(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            outbox_id: row.try_get("outbox_id")?,
            tenant: row.try_get("code")?,
            topic: row.try_get("topic")?,
            payload: row.try_get("payload")?,
            created: row.try_get("created")?,
        })
    }

    async fn publish(&self, context: &jetstream::Context) -> Result<(), DemoError> {
        let mut headers = HeaderMap::new();
        // With the time, because a database restored to an earlier moment gives the same outbox_id
        // to another event, which must not be taken for a repetition.
        let id = format!(
            "outbox-{}-{}",
            self.outbox_id,
            self.created.replace(' ', "T")
        );
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
        let body = json!({
            "outbox_id": self.outbox_id,
            "tenant": self.tenant,
            "topic": self.topic,
            "created_at": self.created,
            "event": self.payload,
        });
        let subject = format!("{SUBJECT_PREFIX}{}", self.tenant);
        let sent = context
            .publish_with_headers(subject, headers, body.to_string().into())
            .await
            .map_err(broker("publishing an event"))?;
        let ack = sent.await.map_err(broker("publishing an event"))?;
        if ack.stream != STREAM {
            return Err(broker("publishing an event")(format!(
                "stream {} took it",
                ack.stream
            )));
        }
        Ok(())
    }
}
