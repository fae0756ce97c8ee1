//! The few doors to PostgreSQL: quoting, running, reading JSON, copying. All SQL of this crate is made of
//! names and values that went through [`ident`] and [`literal`]; every statement runs with
//! `search_path = ''`.

use std::path::Path;

pub(crate) use dr_sources::postgres::{SESSION, ident, literal, table};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

use crate::TenantError;

/// Pieces in which COPY data is sent and written. The server sends a message for each row: passed on one by one, they
/// cost more than all the rest.
const COPY_PIECE_BYTES: usize = 256 * 1024;

/// Runs statements that return nothing.
pub(crate) async fn run(
    connection: &mut PgConnection,
    sql: &str,
    action: impl Into<String>,
) -> Result<(), TenantError> {
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .map(|_| ())
        .map_err(TenantError::sql(action))
}

/// All rows of a query.
pub(crate) async fn rows(
    connection: &mut PgConnection,
    sql: &str,
    action: impl Into<String>,
) -> Result<Vec<sqlx::postgres::PgRow>, TenantError> {
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(TenantError::sql(action))
}

/// One column of one row.
pub(crate) fn column<'r, T>(row: &'r sqlx::postgres::PgRow, index: usize) -> Result<T, TenantError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index)
        .map_err(TenantError::sql("reading an answer of PostgreSQL"))
}

/// The single value of a query with one row and one column.
pub(crate) async fn value<T>(
    connection: &mut PgConnection,
    sql: &str,
    action: impl Into<String>,
) -> Result<T, TenantError>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let row = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(TenantError::sql(action))?;
    column(&row, 0)
}

/// The rows of a query as values of a type whose fields are named like its columns.
pub(crate) async fn json<T: DeserializeOwned>(
    connection: &mut PgConnection,
    query: &str,
    action: &str,
) -> Result<Vec<T>, TenantError> {
    let sql = format!("select coalesce(json_agg(dr_row), '[]')::text from ({query}) dr_row");
    let text: String = value(connection, &sql, action).await?;
    serde_json::from_str(&text).map_err(|error| TenantError::format(action, error))
}

/// A row count as PostgreSQL gives it.
pub(crate) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Streams a query's COPY text from one server into a table of another.
pub(crate) async fn copy_across(
    from: &mut PgConnection,
    query: &str,
    to: &mut PgConnection,
    into: &str,
    what: &str,
) -> Result<(), TenantError> {
    let reading = format!("reading {what}");
    let writing = format!("copying {what}");
    let mut source = from
        .copy_out_raw(&format!("copy ({query}) to stdout"))
        .await
        .map_err(TenantError::sql(&reading))?;
    let mut sink = to
        .copy_in_raw(&format!("copy {into} from stdin"))
        .await
        .map_err(TenantError::sql(&writing))?;
    let mut gathered = Vec::with_capacity(2 * COPY_PIECE_BYTES);
    while let Some(piece) = source.next().await {
        match piece {
            Ok(piece) => gathered.extend_from_slice(&piece),
            Err(error) => {
                // The first error is the one that matters; the abort only frees the connection.
                drop(sink.abort("the source failed").await);
                return Err(TenantError::sql(&reading)(error));
            }
        }
        if gathered.len() >= COPY_PIECE_BYTES {
            let piece = std::mem::take(&mut gathered);
            sink.send(piece).await.map_err(TenantError::sql(&writing))?;
        }
    }
    if !gathered.is_empty() {
        let sent = sink.send(gathered).await;
        sent.map_err(TenantError::sql(&writing))?;
    }
    sink.finish().await.map_err(TenantError::sql(&writing))?;
    Ok(())
}

/// How COPY writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyFormat {
    /// As COPY reads them again.
    Text,
    /// For people and other programs, with the columns' names first.
    Csv,
}

/// What was written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Streams a query's rows into a new file, durably, that only its owner may read.
pub(crate) async fn copy_to_file(
    from: &mut PgConnection,
    query: &str,
    format: CopyFormat,
    path: &Path,
    what: &str,
) -> Result<Copied, TenantError> {
    let file = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await
        .map_err(TenantError::file("create", path))?;
    let mut file = BufWriter::with_capacity(COPY_PIECE_BYTES, file);
    let with = match format {
        CopyFormat::Text => "",
        CopyFormat::Csv => " with (format csv, header)",
    };
    let mut source = from
        .copy_out_raw(&format!("copy ({query}) to stdout{with}"))
        .await
        .map_err(TenantError::sql(format!("reading {what}")))?;
    let (mut bytes, mut digest) = (0, Sha256::new());
    while let Some(piece) = source.next().await {
        let piece = piece.map_err(TenantError::sql(format!("reading {what}")))?;
        bytes += piece.len() as u64;
        digest.update(&piece);
        file.write_all(&piece)
            .await
            .map_err(TenantError::file("write", path))?;
    }
    file.flush()
        .await
        .map_err(TenantError::file("write", path))?;
    let file = file.into_inner();
    file.sync_all()
        .await
        .map_err(TenantError::file("write", path))?;
    Ok(Copied {
        bytes,
        sha256: hex::encode(digest.finalize()),
    })
}

/// Streams a file of COPY text into a table (with its column list).
pub(crate) async fn copy_from_file(
    to: &mut PgConnection,
    into: &str,
    path: &Path,
    what: &str,
) -> Result<(), TenantError> {
    let loading = format!("loading {what}");
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(TenantError::file("open", path))?;
    let mut sink = to
        .copy_in_raw(&format!("copy {into} from stdin"))
        .await
        .map_err(TenantError::sql(&loading))?;
    let mut buffer = vec![0u8; COPY_PIECE_BYTES];
    loop {
        let read = file
            .read(&mut buffer)
            .await
            .map_err(TenantError::file("read", path))?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
            break;
        };
        sink.send(piece).await.map_err(TenantError::sql(&loading))?;
    }
    sink.finish().await.map_err(TenantError::sql(&loading))?;
    Ok(())
}
