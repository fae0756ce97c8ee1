//! The arguments, as people read them in `--help`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};

/// Disaster recovery for multi-tenant ERP platforms: tiered backups that run unattended, one tenant
/// put back to a moment while all others keep working, and game days that measure what was promised.
#[derive(Debug, Parser)]
#[command(name = "dr", version, max_term_width = 100, propagate_version = true, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The engine file. Else $DR_CONFIG, else ./dr.yaml, else /etc/dr-engine/dr.yaml.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Answers on stdout as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
TARGET is `latest`, a time with its offset (2026-11-23T14:03:21Z), an LSN (0/3000028), a transaction
(xid:7391), the moment before it (before:7391), a name given with pg_create_restore_point
(name:before-import) or a restore point id (rp-...).

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done but an objective was missed.
`dr wal push` and `dr wal fetch` answer PostgreSQL in its own codes, see their --help.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Creates configuration, key, repository and catalog; or adopts what an old host left.
    Init(InitArgs),
    /// Shows every workload's promise and how well it is kept.
    Status,
    /// Runs everything on schedule, in the foreground, until SIGTERM.
    Serve,
    /// Shows the whole story on this machine: backups, one tenant's mistake, game days, reports.
    Demo(DemoArgs),
    /// Takes, lists and proves backups.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Archives and delivers WAL, for archive_command and restore_command; checks what is stored of it.
    #[command(subcommand)]
    Wal(WalCommand),
    /// Restores a workload to a moment.
    Restore(RestoreArgs),
    /// Tells what happened to one tenant, restores it, and takes that back.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Runs game days and writes their reports.
    #[command(subcommand)]
    Drill(DrillCommand),
    /// Runs the outside client that drills measure with.
    #[command(subcommand)]
    Probe(ProbeCommand),
    /// Shows and runs recovery steps.
    #[command(subcommand)]
    Runbook(RunbookCommand),
    /// Keeps restore points from being removed.
    #[command(subcommand)]
    Hold(HoldCommand),
    /// Shows and changes who can open a repository; destroys one tenant's key.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Checks and mends repositories, and brings their copies up.
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Looks after the index of the repository.
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Checks the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints the version and how this program was built.
    Version,
    /// Prints a completion script for a shell.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// For a new configuration: the folder of its repository.
    #[arg(long, value_name = "DIR", conflicts_with = "adopt")]
    pub(crate) repository: Option<PathBuf>,
    /// Takes over a repository from another host: a folder, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "REPOSITORY", requires = "opener")]
    pub(crate) adopt: Option<String>,
    /// The key file of the repository that is adopted.
    #[arg(long, value_name = "FILE", requires = "adopt", group = "opener")]
    pub(crate) key: Option<PathBuf>,
    /// The age identity file (recovery key) that opens the repository that is adopted.
    #[arg(long, value_name = "FILE", requires = "adopt", group = "opener")]
    pub(crate) age_identity: Option<PathBuf>,
    /// A file with the passphrase that opens the repository that is adopted.
    #[arg(long, value_name = "FILE", requires = "adopt", group = "opener")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Region of the bucket that is adopted.
    #[arg(long, default_value = "us-east-1", requires = "adopt")]
    pub(crate) region: String,
    /// Endpoint of the bucket that is adopted, where it is not AWS.
    #[arg(long, value_name = "URL", requires = "adopt")]
    pub(crate) endpoint: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The demo's folder; made anew, refused if it is not the demo's own.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/dr-demo")]
    pub(crate) dir: PathBuf,
    /// Removes the demo's folder and whatever of it still runs, and ends.
    #[arg(long)]
    pub(crate) clean: bool,
    /// Internal: the outbox relay of the demo.
    #[arg(long, hide = true, value_names = ["URL", "NATS", "LOG"], num_args = 3)]
    pub(crate) relay: Option<Vec<String>>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Takes a backup now.
    Run {
        /// The workload.
        workload: String,
        /// Reads everything. Otherwise files of a folder that did not change since the last backup, by
        /// size, times and inode, are not read, nor are a cluster's pages that the WAL since the last
        /// base backup does not name. What is stored already is not stored again.
        #[arg(long)]
        full: bool,
        /// Waits when another job of this workload runs.
        #[arg(long)]
        wait: bool,
    },
    /// Lists restore points.
    List {
        /// Only this workload.
        workload: Option<String>,
    },
    /// Proves a restore point by really restoring it; the newest of each workload when none is named.
    Verify {
        /// The restore point.
        point: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Stores a WAL file; exit 0 only when it is durable in the repository, else 1.
    Push {
        /// The file: PostgreSQL's %p.
        #[arg(required_unless_present = "ready", conflicts_with = "ready")]
        path: Option<PathBuf>,
        /// Stores everything that the server waits to have archived, several files at a time; for
        /// after an outage of the repository. The server then finds each one stored.
        #[arg(long)]
        ready: bool,
        /// With --ready: the workload; may be left out when there is one PostgreSQL workload.
        #[arg(long, requires = "ready")]
        workload: Option<String>,
    },
    /// Delivers a WAL file; exit 0 delivered, 1 the repository does not hold it, 200 anything else.
    Fetch {
        /// The file's name: PostgreSQL's %f.
        name: String,
        /// Where it goes: PostgreSQL's %p.
        path: PathBuf,
        /// The workload; may be left out when the configuration has one PostgreSQL workload.
        #[arg(long)]
        workload: Option<String>,
        /// The server is thrown away: nothing is flushed.
        #[arg(long, hide = true)]
        spare_flushes: bool,
    },
    /// Fetches segments before recovery asks for them; started by `fetch`.
    #[command(hide = true)]
    Ahead {
        /// The folder for what is prepared.
        folder: PathBuf,
        /// The segment before the first to be prepared.
        #[arg(long)]
        after: String,
        /// The size of a segment in bytes.
        #[arg(long)]
        segment_bytes: u64,
        /// The process that recovers.
        #[arg(long)]
        recovery: u32,
        /// Its data directory.
        #[arg(long)]
        data_directory: PathBuf,
        /// The workload; may be left out when the configuration has one PostgreSQL workload.
        #[arg(long)]
        workload: Option<String>,
        /// The server is thrown away: nothing is flushed.
        #[arg(long)]
        spare_flushes: bool,
    },
    /// Receives the WAL of a workload as it is written, until it is stopped, beginning again after every
    /// failure. `dr serve` does the same for workloads that have `stream`.
    Receive {
        /// The workload; may be left out when there is one PostgreSQL workload.
        workload: Option<String>,
    },
    /// Moves what is left of a failed primary's WAL into the repository, before anything is restored over it. The
    /// server must not run.
    Rescue {
        /// The workload; may be left out when there is one PostgreSQL workload.
        workload: Option<String>,
    },
    /// Shows what the stored WAL is good for: its timelines, and what is out of reach for gaps.
    Check {
        /// The workload; every PostgreSQL workload when left out.
        workload: Option<String>,
        /// Reads and verifies every record, and tells which commits there are.
        #[arg(long)]
        records: bool,
    },
}

fn parse_tablespace(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (was, now) = text
        .split_once('=')
        .ok_or_else(|| "write it as OLD=NEW, two absolute paths".to_owned())?;
    let (was, now) = (PathBuf::from(was), PathBuf::from(now));
    match was.is_absolute() && now.is_absolute() {
        true => Ok((was, now)),
        false => Err("both paths must be absolute".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The workload.
    pub(crate) workload: String,
    /// The folder; empty or not there yet. Queues go back into their server instead.
    #[arg(long, value_name = "DIR")]
    pub(crate) into: Option<PathBuf>,
    /// The folder holds an older or a damaged state of the same cluster, which is stopped: what is right in it
    /// stays, only what differs is written, and the rest goes.
    #[arg(long)]
    pub(crate) delta: bool,
    /// With --delta: the WAL in the folder may be lost, even what is not in the repository.
    #[arg(long, requires = "delta")]
    pub(crate) discard_wal: bool,
    /// The moment.
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    pub(crate) to: dr_model::Target,
    /// Stops before the target instead of after it.
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// Starts the restored cluster and waits until it accepts connections.
    #[arg(long)]
    pub(crate) start: bool,
    /// The restored cluster becomes the new primary and goes on archiving.
    #[arg(long)]
    pub(crate) as_primary: bool,
    /// Where configuration files from outside the data directory go.
    #[arg(long, value_name = "DIR")]
    pub(crate) config_into: Option<PathBuf>,
    /// Where a tablespace goes, by where it was; may be given several times. Others go where they were, if
    /// the cluster takes its source's place and that is empty, else beside the folder.
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = parse_tablespace)]
    pub(crate) tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Queues: replaces streams that are there.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Leaves what was erased in the copy, which is not recovered privately then. Nobody may see it who must not see
    /// what was erased.
    #[arg(long)]
    pub(crate) without_erasures: bool,
    /// Shows what would be done and ends.
    #[arg(long)]
    pub(crate) preview: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Lists the tenants of a workload.
    List {
        /// The workload.
        workload: String,
    },
    /// Shows how each table belongs to a tenant.
    Map {
        /// The workload.
        workload: String,
        /// Of this tenant's own database, where tenants have databases of their own.
        #[arg(long)]
        tenant: Option<String>,
        /// As YAML, to be declared whole in the workload's section of `dr.yaml`.
        #[arg(long)]
        yaml: bool,
        /// Fails also where the live schema has tables that the declared map does not know.
        #[arg(long, conflicts_with = "yaml")]
        check: bool,
        /// Counts rows: of no tenant, everybody's, and where tenant column and foreign key disagree. Reads
        /// whole tables.
        #[arg(long, conflicts_with = "yaml")]
        rows: bool,
    },
    /// Lists the transactions that touched one tenant's rows, to find the moment before a mistake.
    Timeline(TenantTimelineArgs),
    /// Puts one tenant back to a moment; all others keep working.
    Restore(Box<TenantRestoreArgs>),
    /// Records that rows of a tenant, or all of it, were erased and must not come back: every later restore takes
    /// them out before anyone sees them. Nothing live is changed.
    Erase(Box<TenantEraseArgs>),
    /// Lists the ledger of erasures.
    Erasures {
        /// The workload; may be left out when one workload holds tenants' rows.
        #[arg(long)]
        workload: Option<String>,
    },
    /// Lists what was done to the tenants of a workload, and what became of it.
    History {
        /// The workload; may be left out when one workload holds tenants' rows.
        workload: Option<String>,
    },
    /// Writes the signed certificate of a tenant restore or an undo: a JSON and an HTML file.
    Certificate {
        /// The tenant restore's id, as printed by it.
        restore: dr_model::TenantRestoreId,
        /// The folder for the two files.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Tells whether a certificate is as it was signed, and by whom.
    VerifyCertificate {
        /// The JSON or the HTML file.
        file: PathBuf,
        /// The public key it has to be signed under, in hexadecimal. Without it the repositories of the
        /// configuration are asked.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Takes a tenant restore back.
    Undo {
        /// The tenant restore's id, as printed by it.
        restore: dr_model::TenantRestoreId,
        /// The workload; may be left out when one workload holds tenants' rows.
        #[arg(long)]
        workload: Option<String>,
        /// Shows what would change and ends.
        #[arg(long)]
        preview: bool,
        #[command(flatten)]
        writing: WritingArgs,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// How a tenant's rows are written.
#[derive(Debug, Args, Clone, Copy)]
pub(crate) struct WritingArgs {
    /// How long a statement waits for a lock of somebody else before all is rolled back.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) lock_wait: dr_model::HumanDuration,
    /// How long writing may take before all is rolled back.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) time_limit: dr_model::HumanDuration,
    /// Refreshes the materialized views over the tables that were written to. Readers of one without a unique
    /// index wait meanwhile, all tenants'.
    #[arg(long)]
    pub(crate) refresh_views: bool,
}

impl From<WritingArgs> for dr_tenant::Writing {
    fn from(arguments: WritingArgs) -> Self {
        Self {
            lock_wait: arguments.lock_wait.0,
            time_max: arguments.time_limit.0,
            refresh_views: arguments.refresh_views,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct TenantEraseArgs {
    /// The tenant: its name, or id:VALUE.
    pub(crate) tenant: String,
    /// The workload; may be left out when one workload holds the tenant.
    #[arg(long)]
    pub(crate) workload: Option<String>,
    /// Why it has to be forgotten: a request's number, a law. Kept for as long as the repository is.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) reason: String,
    /// Only these rows, by their keys: `TABLE:KEY[,KEY...]`; the values of a key of several columns are joined by
    /// `/`, and the tenant's own id may be left out of it. Can be given several times.
    #[arg(long, value_name = "TABLE:KEYS")]
    pub(crate) rows: Vec<String>,
    /// Only the live rows for which this holds: `TABLE: CONDITION` in SQL. What is recorded are their keys. Can be
    /// given once for each table.
    #[arg(long = "where", value_name = "TABLE: CONDITION")]
    pub(crate) conditions: Vec<String>,
    /// Also rows of the tenant that refer to these, whatever their foreign keys do when a row is deleted.
    #[arg(long)]
    pub(crate) dependents: bool,
    /// Shows what would be recorded, and what it comes to, and ends.
    #[arg(long)]
    pub(crate) preview: bool,
    /// Does not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TenantTimelineArgs {
    /// The tenant: its name, or id:VALUE.
    pub(crate) tenant: String,
    /// The workload; may be left out when one workload holds the tenant.
    #[arg(long)]
    pub(crate) workload: Option<String>,
    /// The beginning of the window; an hour before its end when left out.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) from: Option<DateTime<Utc>>,
    /// The end of the window; now when left out.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) to: Option<DateTime<Utc>>,
}

/// A time with its offset.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    match text.parse() {
        Ok(dr_model::Target::Time(time)) => Ok(time.to_utc()),
        Err(error @ dr_model::InvalidTarget::NoOffset(_)) => Err(error.to_string()),
        _ => Err(format!(
            "`{text}` is no time: write it like 2026-11-23T14:03:21Z"
        )),
    }
}

#[derive(Debug, Args)]
pub(crate) struct TenantRestoreArgs {
    /// The tenant: its name, or id:VALUE.
    pub(crate) tenant: String,
    /// The workload; may be left out when one workload holds the tenant.
    #[arg(long)]
    pub(crate) workload: Option<String>,
    /// The moment.
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: dr_model::Target,
    /// replace: as it was; missing: only what is gone comes back; export: into files; clone: into a new database
    /// of the same server. The last two change nothing.
    #[arg(long, default_value = "replace")]
    pub(crate) mode: String,
    /// Only these tables: `schema.table`, `table`, or with `*`; several with commas.
    #[arg(long, value_name = "TABLES")]
    pub(crate) tables: Vec<String>,
    /// Only rows for which this holds, as they were or as they are: `TABLE: CONDITION` in SQL, as
    /// `invoice: invoice_no >= 4711`. Can be given once for each table.
    #[arg(long = "where", value_name = "TABLE: CONDITION")]
    pub(crate) conditions: Vec<String>,
    /// When rows of others refer to rows that were not there at the target: abort, and write nothing; keep, and
    /// leave the rows they refer to.
    #[arg(long, default_value = "abort", value_parser = ["abort", "keep"])]
    pub(crate) on_conflict: String,
    /// With `--mode export`: the folder, which must not be there.
    #[arg(long, value_name = "DIR", required_if_eq("mode", "export"))]
    pub(crate) into: Option<PathBuf>,
    /// With `--mode clone`: the database, which must not be there.
    #[arg(long, value_name = "NAME", required_if_eq("mode", "clone"))]
    pub(crate) into_database: Option<String>,
    /// With `--mode clone`: the tenant's id in the new database.
    #[arg(long = "as", value_name = "ID", requires = "into_database")]
    pub(crate) as_id: Option<String>,
    #[command(flatten)]
    pub(crate) writing: WritingArgs,
    /// Shows what would change and ends. Nothing is written to production.
    #[arg(long)]
    pub(crate) preview: bool,
    /// Does not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrillCommand {
    /// Runs a game day in a sandbox and writes its report.
    Run {
        /// The drill's file.
        file: PathBuf,
        /// Where the report goes.
        #[arg(long, value_name = "DIR", default_value = "reports")]
        out: PathBuf,
        /// The sandbox's folder; a new temporary one when left out.
        #[arg(long, value_name = "DIR")]
        sandbox: Option<PathBuf>,
    },
    /// Lists drill runs.
    List,
    /// Removes what a drill that was killed left in its sandbox's folder, and ends what still runs there.
    Clean {
        /// The sandbox's folder, as the drill printed it.
        folder: PathBuf,
    },
    /// Writes the quarter's report from all drill runs.
    Report {
        /// The quarter, like 2026Q4; the present one when left out.
        #[arg(long)]
        quarter: Option<String>,
        /// Where the report goes.
        #[arg(long, value_name = "DIR", default_value = "reports")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProbeCommand {
    /// Writes and reads like a user until SIGTERM, and logs every outcome.
    Run {
        /// The probe's file.
        file: PathBuf,
        /// The log: JSON lines, appended.
        #[arg(long)]
        log: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunbookCommand {
    /// Shows the steps.
    Show {
        /// The runbook's file.
        file: PathBuf,
    },
    /// Runs the steps.
    Run {
        /// The runbook's file.
        file: PathBuf,
        /// A value for a step: NAME=VALUE. May be repeated.
        #[arg(long = "set", value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Approves what the steps ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HoldCommand {
    /// Holds a restore point, or every moment of a workload: neither retention nor prune removes it.
    Add(HoldAddArgs),
    /// Lists the holds in force; with --all also those that ended.
    List {
        /// Those that ended, too.
        #[arg(long)]
        all: bool,
    },
    /// Ends a hold.
    Remove {
        /// The hold's id, as listed.
        id: dr_model::HoldId,
        /// Why it is not needed any more.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HoldAddArgs {
    /// A restore point's id, or a workload's name.
    #[arg(value_name = "POINT|WORKLOAD")]
    pub(crate) on: String,
    /// Why.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) reason: String,
    /// The day it ends with (2026-12-31, UTC), or a moment with offset; until it is removed when left
    /// out.
    #[arg(long, value_name = "DATE")]
    pub(crate) until: Option<String>,
    /// For a workload: the first moment held; all when left out.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<chrono::DateTime<chrono::FixedOffset>>,
    /// For a workload: the last moment held; all to come when left out.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<chrono::DateTime<chrono::FixedOffset>>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Lists key slots (what opens the repository), tenants with keys of their own, and what was
    /// shredded.
    List {
        /// Only this repository.
        #[arg(long)]
        repository: Option<String>,
    },
    /// Makes another key slot.
    Add(KeyAddArgs),
    /// Takes a key slot away.
    Remove {
        /// The slot's id, as listed.
        slot: String,
        /// The repository; may be left out when there is one.
        #[arg(long)]
        repository: Option<String>,
        /// Also when it is the one this configuration opens with.
        #[arg(long)]
        yes: bool,
    },
    /// Puts a new key file in the place of the one in use; a crash at any step leaves one that opens.
    Rotate {
        /// The repository; may be left out when there is one.
        #[arg(long)]
        repository: Option<String>,
    },
    /// Destroys the key of one tenant's separable data: nobody can read that any more.
    Shred {
        /// The tenant, as `dr key list` names it.
        tenant: String,
        /// The workload.
        #[arg(long)]
        workload: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("opener").required(true).args(["file", "passphrase_file", "age_recipient", "wrap"]))]
pub(crate) struct KeyAddArgs {
    /// A key file; made (mode 0600) when it is not there.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// A file that holds a passphrase.
    #[arg(long, value_name = "PATH")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// An age recipient (`age1...`): a recovery key whose identity stays offline.
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) age_recipient: Option<String>,
    /// A command that wraps a secret given on its standard input: words, or a JSON list of words.
    #[arg(long, value_name = "COMMAND", requires = "unwrap")]
    pub(crate) wrap: Option<String>,
    /// The command that unwraps it.
    #[arg(long, value_name = "COMMAND", requires = "wrap")]
    pub(crate) unwrap: Option<String>,
    /// What to call the slot.
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// The repository; may be left out when there is one.
    #[arg(long)]
    pub(crate) repository: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Checks that everything needed is there; with --read also every byte.
    Check {
        /// Only this repository.
        repository: Option<String>,
        /// Reads and verifies all data.
        #[arg(long)]
        read: bool,
    },
    /// Removes the restore points and the WAL that retention does not keep, and what only they needed.
    Prune {
        /// Only this repository; else each that backups are made into.
        repository: Option<String>,
        /// Shows what would be removed and why the rest stays, and ends.
        #[arg(long)]
        preview: bool,
        /// Also removes what the configuration does not name any more, but for the newest restore point
        /// of each workload and what is held.
        #[arg(long)]
        unconfigured: bool,
    },
    /// Brings copies up to the repository they are copies of. Goes on where it was interrupted.
    Sync {
        /// Only this copy, or all copies of this repository.
        repository: Option<String>,
    },
    /// Brings back what is damaged or lost from another copy; else says which restore points lost what.
    Repair {
        /// Only this repository; all when left out.
        repository: Option<String>,
        /// Shows what would be done and ends.
        #[arg(long)]
        preview: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// Makes the catalog anew from the repositories.
    Rebuild,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks the engine file, the tiers, and what the sources say of them.
    Check,
}
