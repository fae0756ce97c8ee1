//! A database's client: one connection, made anew at the beginning of a cycle when it broke.

use std::str::FromStr;
use std::time::Duration;

use dr_config::ProbeFile;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};

use super::Answer;
use crate::DrillError;

/// The tenants' query may take longer than a probe's operation.
const TENANTS_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes and reads by the statements of a probe's file.
#[derive(Debug)]
pub struct DatabaseClient {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    /// Why there is no connection.
    broken: String,
    timeout: Duration,
    tenants: String,
    write: String,
    read: String,
}

/// Puts the tenant and the key into a statement as literals of no type, so that they fit columns of
/// any type, as a user's own literals would.
#[must_use]
pub fn fill_in(statement: &str, tenant: &str, key: &str) -> String {
    let mut text = String::with_capacity(statement.len() + 64);
    let mut rest = statement;
    while let Some(place) = rest.find('$') {
        let (before, from) = rest.split_at(place);
        text.push_str(before);
        let digits = from.bytes().skip(1).take_while(u8::is_ascii_digit).count();
        let (name, after) = from.split_at(1 + digits);
        match name {
            "$1" => text.push_str(&literal(tenant)),
            "$2" => text.push_str(&literal(key)),
            other => text.push_str(other),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

/// A string constant (4.1.2.2: with a backslash inside, an escape string).
fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

impl DatabaseClient {
    pub(super) fn new(
        url: &str,
        password: Option<String>,
        probe: &ProbeFile,
    ) -> Result<Self, DrillError> {
        let statement = |name: &str, given: &Option<String>| {
            given.clone().ok_or_else(|| {
                DrillError::Unsuitable(format!(
                    "probe `{}` has no `{name}` statement, and its workload `{}` is a database",
                    probe.probe, probe.workload
                ))
            })
        };
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|source| DrillError::Sql {
                what: "reading the workload's URL",
                source,
            })?
            .application_name("dr-probe")
            .log_statements(tracing::log::LevelFilter::Off);
        if let Some(password) = password {
            options = options.password(&password);
        }
        Ok(Self {
            options,
            connection: None,
            broken: "not connected yet".to_owned(),
            timeout: probe.timeout.0,
            tenants: statement("tenants", &probe.tenants)?,
            write: statement("write", &probe.write)?,
            read: statement("read", &probe.read)?,
        })
    }

    pub(super) async fn begin_cycle(&mut self) {
        if self.connection.is_some() {
            return;
        }
        match tokio::time::timeout(self.timeout, PgConnection::connect_with(&self.options)).await {
            Ok(Ok(connection)) => self.connection = Some(connection),
            Ok(Err(error)) => self.broken = error.to_string(),
            Err(_) => self.broken = "connecting took too long".to_owned(),
        }
    }

    pub(super) async fn tenants(&mut self) -> Result<Vec<String>, DrillError> {
        let failed = |source| DrillError::Sql {
            what: "listing the tenants to probe",
            source,
        };
        self.begin_cycle().await;
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| failed(sqlx::Error::Protocol(self.broken.clone())))?;
        let query = sqlx::query(AssertSqlSafe(self.tenants.clone())).fetch_all(connection);
        let rows = tokio::time::timeout(TENANTS_TIMEOUT, query)
            .await
            .map_err(|_| DrillError::TooSlow {
                what: "listing the tenants to probe".to_owned(),
                seconds: TENANTS_TIMEOUT.as_secs(),
            })?
            .map_err(failed)?;
        rows.iter()
            .map(|row| tenant_text(row).map_err(failed))
            .collect()
    }

    pub(super) async fn write(&mut self, tenant: &str, key: &str) -> Answer {
        let text = fill_in(&self.write, tenant, key);
        match self.ask(text).await {
            Ok(_) => Answer::acked(None),
            Err(answer) => answer,
        }
    }

    pub(super) async fn read(&mut self, tenant: &str, key: &str) -> Answer {
        match self.count(tenant, key).await {
            Ok(0) => Answer::failed("the read returned no row"),
            Ok(_) => Answer::acked(None),
            Err(answer) => answer,
        }
    }

    /// How many rows the read returns for a key.
    ///
    /// # Errors
    /// The answer that is no answer.
    pub async fn count(&mut self, tenant: &str, key: &str) -> Result<usize, Answer> {
        let text = fill_in(&self.read, tenant, key);
        self.ask(text).await
    }

    /// Runs one statement of its own transaction; gives the number of rows it returned.
    async fn ask(&mut self, text: String) -> Result<usize, Answer> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Answer::failed(&self.broken));
        };
        // The simple protocol: one message out, so that "sent" has one meaning.
        let query = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(connection);
        let answer = match tokio::time::timeout(self.timeout, query).await {
            Ok(Ok(rows)) => return Ok(rows.len()),
            Ok(Err(error)) if is_refusal(&error) => return Err(Answer::failed(error)),
            Ok(Err(error)) => Answer::unknown(error),
            Err(_) => Answer::unknown("no answer within the time limit"),
        };
        // The session may still be at work on it: never used again.
        self.broken = answer.error.clone().unwrap_or_default();
        self.connection = None;
        Err(answer)
    }
}

/// A tenant id of any of the usual types, as text.
fn tenant_text(row: &sqlx::postgres::PgRow) -> Result<String, sqlx::Error> {
    row.try_get::<String, _>(0)
        .or_else(|_| row.try_get::<i32, _>(0).map(|id| id.to_string()))
        .or_else(|_| row.try_get::<i64, _>(0).map(|id| id.to_string()))
        .or_else(|_| {
            row.try_get::<sqlx::types::Uuid, _>(0)
                .map(|id| id.to_string())
        })
}

/// Whether the server itself said no, so that the statement surely had no effect. A session that is
/// being ended (class 57P, 08) or a completion that is not known (40003) says nothing of the kind.
fn is_refusal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return false;
    };
    error
        .code()
        .is_some_and(|code| !code.starts_with("57P") && !code.starts_with("08") && code != "40003")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_literals_whatever_they_hold() {
        assert_eq!(fill_in("values ($1, $2)", "7", "k"), "values ('7', 'k')");
        assert_eq!(
            fill_in("$1::int $12 $2$", "O'Hara", "a\\b"),
            "'O''Hara'::int $12  E'a\\\\b'$"
        );
    }
}
