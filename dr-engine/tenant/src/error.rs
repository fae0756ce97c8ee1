//! What can go wrong with one tenant.

use dr_model::{HumanDuration, TenantRestoreId, WorkloadName};

/// Errors of this crate. Display says what failed on what; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// The configuration, a key, the repository or the catalog could not be opened.
    #[error(transparent)]
    Installation(#[from] dr_installation::InstallationError),
    /// The state at the target could not be brought back.
    #[error("the state at the target could not be brought back")]
    Restore(#[source] dr_restore::RestoreError),
    /// The tenant's present state could not be stored.
    #[error("the tenant's present state could not be stored; nothing was changed")]
    Backup(#[source] dr_backup::BackupError),
    /// What the log says of a window cannot be read.
    #[error("the WAL of the window cannot be read")]
    Wal(#[source] dr_backup::BackupError),
    /// The ledger of erasures, or what it is to hold.
    #[error("the ledger of erasures could not do its part")]
    Erasure(#[source] dr_restore::RestoreError),
    /// What is to be erased is not said in a form that can be understood.
    #[error("what is to be erased is not clear: {0}")]
    BadErasure(String),
    /// The plan of an erasure names reasons why it may not be recorded.
    #[error("the erasure is refused, and nothing was recorded:{}", list_text(.0))]
    ErasureRefused(Vec<String>),
    /// What is asked for cannot be.
    #[error("{0}")]
    Window(String),
    /// The repository did not take or give something.
    #[error("{action} in the repository failed")]
    Store {
        /// What was being done.
        action: String,
        /// Why.
        #[source]
        source: dr_store::StoreError,
    },
    /// The folder of a restore could not be made.
    #[error("cannot make a work folder")]
    WorkFolder(#[source] dr_sources::SourceError),
    /// PostgreSQL did not answer or could not be asked.
    #[error("cannot connect to {place}")]
    Connect {
        /// Which server.
        place: String,
        /// Why.
        #[source]
        source: dr_sources::SourceError,
    },
    /// A statement failed.
    #[error("{action} failed")]
    Sql {
        /// What was being done, on what.
        action: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A file or folder.
    #[error("cannot {action} {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something stored does not have the form it must have.
    #[error("{what} is damaged or of an unknown form: {why}")]
    Format {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The workload has no `tenancy` that this needs.
    #[error("workload `{workload}` has no `{missing}` in its configuration")]
    NotConfigured {
        /// The workload.
        workload: WorkloadName,
        /// The missing key.
        missing: &'static str,
    },
    /// No tenant of this name.
    #[error("there is no tenant `{name}` {place}{}", nearest_text(.nearest))]
    UnknownTenant {
        /// What was asked for.
        name: String,
        /// Where was looked.
        place: String,
        /// Names that look like it.
        nearest: Vec<String>,
    },
    /// Several tenants, or several workloads, answer to the name.
    #[error("`{name}` is not clear: {candidates}")]
    AmbiguousTenant {
        /// What was asked for.
        name: String,
        /// What it could be.
        candidates: String,
    },
    /// Some tables are in no class.
    #[error("{} of workload `{workload}` {} in no class, so no restore can be complete: {}",
        if .tables.len() == 1 { "a table" } else { "some tables" },
        if .tables.len() == 1 { "is" } else { "are" },
        .tables.join(", "))]
    Unclassified {
        /// The workload.
        workload: WorkloadName,
        /// The tables with the reason.
        tables: Vec<String>,
        /// What to add to the configuration.
        yaml: String,
    },
    /// The plan names reasons why it may not be carried out.
    #[error("the restore is refused:{}", list_text(.0))]
    Refused(Vec<String>),
    /// The rows are not what they were when the plan was made.
    #[error("the tenant's rows are no longer what the plan was made from:{}", list_text(.0))]
    Changed(Vec<String>),
    /// A check before the commit found the result wrong; all was rolled back.
    #[error("{what}; everything was rolled back and nothing was changed:{}", list_text(.found))]
    CheckFailed {
        /// Which check.
        what: &'static str,
        /// What it found.
        found: Vec<String>,
    },
    /// The connection was lost while committing and the outcome cannot be learnt.
    #[error(
        "the connection was lost while committing and the server does not know the outcome of transaction {xid} any more"
    )]
    OutcomeUnknown {
        /// The transaction.
        xid: String,
        /// The restore.
        id: TenantRestoreId,
    },
    /// No such tenant restore.
    #[error("there is no tenant restore `{0}`")]
    UnknownRestore(TenantRestoreId),
    /// There is nothing that a certificate could say.
    #[error("tenant restore `{id}` has no certificate: {why}")]
    NotCertified {
        /// The restore.
        id: TenantRestoreId,
        /// Why.
        why: String,
    },
    /// A document is not a certificate as it was signed.
    #[error("the certificate is not genuine: {0}")]
    NotGenuine(String),
    /// What was to run first failed.
    #[error("hook {hook} failed, so nothing was changed: {why}")]
    Hook {
        /// Which.
        hook: String,
        /// Why.
        why: String,
    },
    /// What is to be restored of the tenant is not said in a form that can be understood.
    #[error("what is to be restored is not clear: {0}")]
    BadFilter(String),
    /// It cannot be undone.
    #[error("tenant restore `{id}` cannot be undone: {why}")]
    NotUndoable {
        /// The restore.
        id: TenantRestoreId,
        /// Why.
        why: String,
    },
    /// No such mode.
    #[error("`{0}` is no mode: give replace, missing, export or clone")]
    UnknownMode(String),
    /// A mode or model that this version does not have.
    #[error("{0} is not there yet")]
    NotYet(&'static str),
    /// Asked to stop.
    #[error("cancelled; nothing was changed")]
    Cancelled,
    /// The transaction took too long.
    #[error("it was not written within {0}; everything was rolled back and nothing was changed")]
    TooLong(HumanDuration),
    /// A worker thread ended without an answer.
    #[error("the worker that was to {0} ended without an answer")]
    Worker(&'static str),
}

fn list_text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  - {line}")).collect()
}

fn nearest_text(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", nearest.join(", "))
    }
}

impl TenantError {
    pub(crate) fn sql(action: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let action = action.into();
        |source| Self::Sql { action, source }
    }

    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    pub(crate) fn format(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Format {
            what: what.into(),
            why: why.to_string(),
        }
    }

    /// Whether the request or the configuration is at fault, and not what was found.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Installation(source) => source.is_usage(),
            Self::NotConfigured { .. }
            | Self::UnknownTenant { .. }
            | Self::AmbiguousTenant { .. }
            | Self::UnknownMode(_)
            | Self::BadFilter(_)
            | Self::BadErasure(_)
            | Self::Window(_)
            | Self::NotYet(_) => true,
            _ => false,
        }
    }

    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Installation(source) => source.hint(),
            Self::Restore(source) | Self::Erasure(source) => source.hint(),
            Self::BadErasure(_) => Some(
                "--rows takes `TABLE:KEY[,KEY...]`, --where `TABLE: CONDITION`, --reason why it has to be forgotten"
                    .to_owned(),
            ),
            Self::ErasureRefused(_) => Some(
                "name the rows that refer to it with further --rows, or add --dependents: rows of the tenant that refer \
                 to erased ones go with them"
                    .to_owned(),
            ),
            Self::Backup(source) => source.hint(),
            Self::Wal(source) => source.hint().or_else(|| {
                let hint = "choose a window that lies wholly before or behind it with --from and --to";
                Some(hint.to_owned())
            }),
            Self::TooLong(_) => Some(
                "see in pg_stat_activity and pg_locks what it waits for; --time-limit gives it longer".to_owned(),
            ),
            Self::Unclassified { yaml, .. } => {
                Some(format!("add to the workload in dr.yaml, choosing a class for each:\n{yaml}"))
            }
            Self::UnknownTenant { .. } => Some("`dr tenant list WORKLOAD` shows all tenants".to_owned()),
            Self::AmbiguousTenant { .. } => {
                Some("say `id:VALUE` for the tenant, or name the workload with --workload".to_owned())
            }
            Self::Changed(_) => Some(
                "the tenant is still being written to: stop its users and look at the preview again"
                    .to_owned(),
            ),
            Self::Sql { source, .. } => sql_hint(source),
            Self::NotCertified { id, .. } => Some(format!(
                "`dr tenant history` says what became of it, `dr tenant undo {id} --preview` what it changed"
            )),
            Self::BadFilter(_) => Some(
                "--tables and --rows take names of tables, --where `TABLE: CONDITION`; `dr tenant map WORKLOAD` shows them"
                    .to_owned(),
            ),
            Self::NotGenuine(_) => {
                Some("ask who gave it to you for the file that `dr tenant certificate` wrote".to_owned())
            }
            Self::OutcomeUnknown { id, .. } => Some(format!(
                "`dr tenant history` asks the server once more; `dr tenant undo {id}` works if it was committed"
            )),
            _ => None,
        }
    }
}

/// SQLSTATEs whose way out is known (PostgreSQL documentation, appendix A).
fn sql_hint(error: &sqlx::Error) -> Option<String> {
    let database = error.as_database_error()?;
    match database.code()?.as_ref() {
        "42501" if database.message().contains("session_replication_role") => Some(
            "connect as a superuser, or (15 and later) run as one: \
             GRANT SET ON PARAMETER session_replication_role TO <the user>"
                .to_owned(),
        ),
        "42501" => Some(
            "the user needs SELECT, INSERT, UPDATE and DELETE on every tenant table".to_owned(),
        ),
        "55P03" => Some(
            "another session holds a lock on rows of this tenant (a prepared transaction holds it \
             for ever): see pg_locks and pg_prepared_xacts, then try again; writing waits longer with --lock-wait"
                .to_owned(),
        ),
        "23505" => Some(
            "a key of this tenant belongs to another row by now; see which, it was not touched"
                .to_owned(),
        ),
        _ => None,
    }
}
