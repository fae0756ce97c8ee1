//! What an installation has run around writing to a tenant: keeping its users out, telling search indexes
//! and caches what was written, letting the users in again.

mod http;
mod program;

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dr_config::{TenantHook, TenantHooks};
use dr_model::{Progress, TenantRestoreId, WorkloadName};
use dr_sources::postgres::ConnectOptions;
use serde_json::{Value, json};

use crate::changes::{ChangeSet, Direction, TableChanges};
use crate::execute::Execution;
use crate::plan::{Tenant, TenantPlan};
use crate::report::{ProofLine, ProofOutcome, TenantRestoreReport};
use crate::sql::{self, literal};
use crate::{TenantError, rows};

/// One that takes longer is ended: whoever waits for a restore is not to wait for ever.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Characters of what a program said that are shown.
const SAID_MAX: usize = 400;
/// Keys that are put into the table at a time.
const KEYS_AT_A_TIME: usize = 1000;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    Changed,
    After,
}

impl When {
    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Changed => "changed",
            Self::After => "after",
        }
    }
}

/// The hooks of one restore.
#[derive(Debug)]
pub(crate) struct Hooks {
    hooks: TenantHooks,
    live: ConnectOptions,
    workload: WorkloadName,
    tenant: Tenant,
    restore: TenantRestoreId,
    /// What each may take.
    limit: Duration,
    /// The tenant's users may be kept out.
    begun: AtomicBool,
}

/// The rows that were written: what `changed` is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) set: &'a ChangeSet,
    pub(crate) spool: &'a Path,
    pub(crate) direction: Direction,
}

impl Hooks {
    pub(crate) fn of(execution: &Execution) -> Self {
        Self {
            hooks: execution.place.tenancy.hooks.clone(),
            live: execution.place.live.clone(),
            workload: execution.place.workload.clone(),
            tenant: execution.set.tenant.clone(),
            restore: execution.id.clone(),
            limit: TIME_MAX,
            begun: AtomicBool::new(false),
        }
    }

    /// Runs those of before the restore, if there is something to do.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn before(&self, plan: &TenantPlan) -> Result<Vec<ProofLine>, TenantError> {
        let mut lines = Vec::new();
        if plan.is_empty() || !plan.refused.is_empty() {
            return Ok(lines);
        }
        // A request that cannot be made is known before the users are kept out, and not after.
        for hook in self.hooks.all() {
            if let TenantHook::Http(request) = hook {
                http::check(request).map_err(|why| TenantError::Hook {
                    hook: describe(hook),
                    why,
                })?;
            }
        }
        self.begun.store(true, Ordering::Relaxed);
        for hook in &self.hooks.before {
            let result = self.run(When::Before, hook, None).await;
            let said = result.map_err(|why| TenantError::Hook {
                hook: format!("`before`, {}", describe(hook)),
                why,
            })?;
            lines.push(line(When::Before, hook, Ok(said)));
        }
        Ok(lines)
    }

    /// Does `work`, which runs those of before it, tells the others what was written, and then lets the tenant's
    /// users in again, however it ended.
    pub(crate) async fn around(
        &self,
        progress: &dyn Progress,
        work: impl Future<Output = Result<(Execution, TenantRestoreReport), TenantError>>,
    ) -> Result<TenantRestoreReport, TenantError> {
        let result = work.await;
        let mut ran = Vec::new();
        if let Ok((execution, report)) = &result
            && report.transaction.is_some()
        {
            ran.extend(execution.refresh_views().await);
            ran.extend(self.changed(execution.written()).await);
        }
        if self.begun.load(Ordering::Relaxed) {
            ran.extend(self.after().await);
        }
        match result {
            Ok((execution, mut report)) => {
                execution.hooks_ran(&mut report, ran).await;
                Ok(report)
            }
            Err(error) => {
                for line in ran
                    .iter()
                    .filter(|line| line.outcome == ProofOutcome::Differs)
                {
                    progress.note(&format!(
                        "NOT AS IT MUST BE: {} ({})",
                        line.what, line.detail
                    ));
                }
                Err(error)
            }
        }
    }

    /// Runs those that are told the rows. A failure is a line: the restore is committed.
    async fn changed(&self, rows: Rows<'_>) -> Vec<ProofLine> {
        let mut lines = Vec::new();
        for hook in &self.hooks.changed {
            let result = self.run(When::Changed, hook, Some(rows)).await;
            lines.push(line(When::Changed, hook, result));
        }
        lines
    }

    /// Runs those of the end, each of them. A failure is a line.
    async fn after(&self) -> Vec<ProofLine> {
        let mut lines = Vec::new();
        for hook in &self.hooks.after {
            let result = self.run(When::After, hook, None).await;
            lines.push(line(When::After, hook, result));
        }
        lines
    }

    async fn run(
        &self,
        when: When,
        hook: &TenantHook,
        rows: Option<Rows<'_>>,
    ) -> Result<String, String> {
        let work = async {
            match hook {
                TenantHook::Sql(text) => self.statements(text, rows).await,
                TenantHook::Command(words) => {
                    program::run(words, self.environment(when), rows).await
                }
                TenantHook::Http(hook) => http::send(hook, &self.about(when), rows).await,
            }
        };
        let limit = match hook {
            TenantHook::Http(http) => http.timeout.map_or(self.limit, |timeout| timeout.0),
            TenantHook::Sql(_) | TenantHook::Command(_) => self.limit,
        };
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(format!("it was ended after {} s", limit.as_secs_f64())),
        }
    }

    /// What a request says of itself: the same that a program finds in its environment.
    fn about(&self, when: When) -> Value {
        json!({
            "hook": when.word(),
            "tenant_id": self.tenant.id,
            "tenant_name": self.tenant.name,
            "workload": self.workload.as_str(),
            "restore": self.restore.as_str(),
        })
    }

    /// What a program finds in its environment.
    fn environment(&self, when: When) -> [(&'static str, &str); 5] {
        [
            ("DR_HOOK", when.word()),
            ("DR_TENANT_ID", &self.tenant.id),
            ("DR_TENANT_NAME", &self.tenant.name),
            ("DR_WORKLOAD", self.workload.as_str()),
            ("DR_RESTORE", self.restore.as_str()),
        ]
    }

    async fn statements(&self, text: &str, rows: Option<Rows<'_>>) -> Result<String, String> {
        let run = async {
            let mut live = rows::session(&self.live, "the live database").await?;
            let begin = "begin; set local search_path = default; set local lock_timeout = 0";
            sql::run(&mut live, begin, "beginning").await?;
            let mut told = 0;
            if let Some(rows) = rows {
                let make = "create temporary table dr_changed \
                            (relation text, change text, key jsonb) on commit drop";
                sql::run(&mut live, make, "making the table of changed rows").await?;
                let mut keys = Vec::new();
                for changed in Changed::of(rows) {
                    keys.push(changed?);
                    if keys.len() >= KEYS_AT_A_TIME {
                        told += keys.len();
                        insert(&mut live, &std::mem::take(&mut keys)).await?;
                    }
                }
                told += keys.len();
                insert(&mut live, &keys).await?;
            }
            sql::run(&mut live, &self.filled(text), "running the statements").await?;
            sql::run(&mut live, "commit", "committing").await?;
            rows::close(live).await;
            Ok::<usize, TenantError>(told)
        };
        match run.await {
            Ok(told) if rows.is_some() => Ok(format!("{told} rows told")),
            Ok(_) => Ok("done".to_owned()),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                Err(format!("{error}{}", cause.unwrap_or_default()))
            }
        }
    }

    /// In one pass: what stands in a value is no placeholder.
    fn filled(&self, text: &str) -> String {
        let values = [
            ("{id}", self.tenant.id.as_str()),
            ("{name}", self.tenant.name.as_str()),
            ("{restore}", self.restore.as_str()),
        ];
        let (mut filled, mut rest) = (String::new(), text);
        while let Some(letter) = rest.chars().next() {
            let meant = values.iter().find_map(|(placeholder, value)| {
                rest.strip_prefix(placeholder).map(|behind| (value, behind))
            });
            match meant {
                Some((value, behind)) => {
                    filled.push_str(&literal(value));
                    rest = behind;
                }
                None => {
                    filled.push(letter);
                    rest = rest.get(letter.len_utf8()..).unwrap_or_default();
                }
            }
        }
        filled
    }
}

async fn insert(live: &mut sqlx::PgConnection, keys: &[Value]) -> Result<(), TenantError> {
    if keys.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_string(keys).map_err(|error| TenantError::format("a key", error))?;
    let statement = format!(
        "insert into pg_temp.dr_changed select relation, change, key from pg_catalog.jsonb_to_recordset({}) \
         as k(relation text, change text, key jsonb)",
        literal(&text)
    );
    sql::run(live, &statement, "filling the table of changed rows").await
}

fn describe(hook: &TenantHook) -> String {
    match hook {
        TenantHook::Sql(text) => {
            let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("SQL `{}`", text.chars().take(80).collect::<String>())
        }
        TenantHook::Command(words) => format!("`{}`", words.join(" ")),
        TenantHook::Http(hook) => format!("`{}`", http::describe(hook)),
    }
}

/// When a hook ran, of a line of the proof that says so.
pub(crate) fn when(what: &str) -> Option<&str> {
    let (when, rest) = what.strip_prefix("hook `")?.split_once('`')?;
    rest.starts_with(" ran").then_some(when)
}

fn line(when: When, hook: &TenantHook, result: Result<String, String>) -> ProofLine {
    let (outcome, detail) = match result {
        Ok(said) => (ProofOutcome::Agrees, said),
        Err(why) => (ProofOutcome::Differs, why),
    };
    ProofLine {
        what: format!("hook `{}` ran: {}", when.word(), describe(hook)),
        outcome,
        detail,
    }
}

/// The rows of a change set, one after the other, as `{"relation", "change", "key"}`; a table without a key has
/// `null` there.
struct Changed<'a> {
    rows: Rows<'a>,
    tables: std::slice::Iter<'a, TableChanges>,
    open: Option<(&'a TableChanges, io::Lines<BufReader<std::fs::File>>)>,
}

impl<'a> Changed<'a> {
    fn of(rows: Rows<'a>) -> Self {
        Self {
            rows,
            tables: rows.set.tables.iter(),
            open: None,
        }
    }
}

impl Iterator for Changed<'_> {
    type Item = Result<Value, TenantError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((table, lines)) = &mut self.open {
                let path = self.rows.spool.join(table.file());
                match lines.next() {
                    Some(Ok(line)) => return Some(Ok(changed(table, &line, self.rows.direction))),
                    Some(Err(error)) => return Some(Err(TenantError::file("read", &path)(error))),
                    None => self.open = None,
                }
            }
            let table = self.tables.find(|table| table.counts.total() > 0)?;
            let path = self.rows.spool.join(table.file());
            match std::fs::File::open(&path) {
                Ok(file) => self.open = Some((table, BufReader::new(file).lines())),
                Err(error) => return Some(Err(TenantError::file("open", &path)(error))),
            }
        }
    }
}

/// A line of COPY text: `op, o0…, n0…` ("Text Format", COPY).
fn changed(table: &TableChanges, line: &str, direction: Direction) -> Value {
    let fields: Vec<&str> = line.split('\t').collect();
    let columns = table.slice.columns.len();
    let op = fields.first().copied().unwrap_or_default();
    let (change, at) = match (op, direction) {
        ("I", Direction::Forward) => ("insert", 1 + columns),
        ("I", Direction::Reverse) => ("delete", 1 + columns),
        ("D", Direction::Forward) => ("delete", 1),
        ("D", Direction::Reverse) => ("insert", 1),
        _ => ("update", 1),
    };
    let key: serde_json::Map<String, Value> = table
        .slice
        .key
        .iter()
        .map(|key| {
            let field = fields.get(at + key.place).copied().unwrap_or("\\N");
            let value = unescaped(field).map_or(Value::Null, Value::String);
            (table.slice.name_at(key.place).to_owned(), value)
        })
        .collect();
    let key = match table.slice.key.is_empty() {
        true => Value::Null,
        false => Value::Object(key),
    };
    json!({ "relation": table.slice.table.to_string(), "change": change, "key": key })
}

fn unescaped(field: &str) -> Option<String> {
    if field == "\\N" {
        return None;
    }
    let mut text = String::with_capacity(field.len());
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        let letter = match letter {
            '\\' => match letters.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(other) => other,
                None => break,
            },
            other => other,
        };
        text.push(letter);
    }
    Some(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn hooks() -> Hooks {
        Hooks {
            hooks: TenantHooks::default(),
            live: ConnectOptions {
                url: String::new(),
                password: None,
            },
            workload: "erp".parse().unwrap(),
            tenant: Tenant {
                id: "{name}".to_owned(),
                name: "it's {restore}".to_owned(),
                others: std::collections::BTreeMap::new(),
            },
            restore: TenantRestoreId::new(chrono::Utc::now()),
            limit: TIME_MAX,
            begun: AtomicBool::new(false),
        }
    }

    #[test]
    fn placeholders_are_filled_once() {
        assert_eq!(
            hooks().filled("select {id}, {name}, {other} é"),
            "select '{name}', 'it''s {restore}', {other} é"
        );
    }

    fn shell(script: &str) -> TenantHook {
        TenantHook::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    /// The file is a pipe with a name: its end is read when nobody is left who could write to it.
    #[tokio::test]
    async fn a_program_that_takes_too_long_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("written");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let mut hooks = hooks();
        hooks.limit = Duration::from_secs(3);
        // It would go on for a minute.
        let hook = shell(&format!(
            "(for n in $(seq 600); do echo $n; sleep 0.1; done > {} 2> /dev/null) & wait",
            pipe.display()
        ));
        let (sender, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(std::fs::read_to_string(pipe)));
        let result = hooks.run(When::Before, &hook, None).await;
        assert_eq!(result, Err("it was ended after 3 s".to_owned()));
        let written = end.recv_timeout(Duration::from_secs(20));
        let written = written
            .expect("what it had started went on writing")
            .unwrap();
        assert!(written.starts_with("1\n"), "{written}");
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_when_it_ends_by_itself_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("written");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // It waits for a reader, which comes when the hook has ended.
        let left = format!("(echo later > {}) > /dev/null 2>&1 &", pipe.display());
        let hook = shell(&format!("{left} echo begun"));
        let result = hooks().run(When::Before, &hook, None).await;
        assert_eq!(result, Ok("it said: begun".to_owned()));
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(pipe));
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        assert_eq!(read.unwrap().unwrap().unwrap(), "later\n");
    }

    #[test]
    fn copys_escapes_are_taken_back() {
        assert_eq!(unescaped("\\N"), None);
        assert_eq!(unescaped("a\\tb\\\\n\\n"), Some("a\tb\\n\n".to_owned()));
        assert_eq!(unescaped(""), Some(String::new()));
    }
}
