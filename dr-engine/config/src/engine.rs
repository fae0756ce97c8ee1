//! The engine file, `dr.yaml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dr_model::{HumanDuration, RepositoryName, TierName, WorkloadKind, WorkloadName};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::{HeaderSource, HttpHook, KeySource, Rate, S3Config, Size};

/// The engine file as written, with paths made absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFile {
    /// Where restore points and WAL live.
    pub repositories: BTreeMap<RepositoryName, RepositoryConfig>,
    /// The catalog: `sqlite:PATH`.
    pub catalog: String,
    /// The folder of tier files.
    pub tiers: PathBuf,
    /// What is protected.
    pub workloads: BTreeMap<WorkloadName, WorkloadConfig>,
    /// When what is not needed any more is removed from the repositories.
    #[serde(default)]
    pub prune: PruneSchedule,
}

/// When `dr serve` prunes each repository that backups are made into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneSchedule {
    /// `false`: only `dr repo prune` removes anything.
    #[serde(default = "default_prune_enabled")]
    pub enabled: bool,
    /// The cron expression, as for backups.
    #[serde(default = "default_prune_cron")]
    pub cron: String,
    /// An IANA zone; UTC when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

impl Default for PruneSchedule {
    fn default() -> Self {
        Self {
            enabled: default_prune_enabled(),
            cron: default_prune_cron(),
            timezone: None,
        }
    }
}

fn default_prune_enabled() -> bool {
    true
}

/// Once a day, behind the nightly backups and verifications of the shipped tiers.
fn default_prune_cron() -> String {
    "0 40 5 * * *".to_owned()
}

impl EngineFile {
    /// The repositories that are no copies of another, in order of name.
    pub fn first_repositories(&self) -> impl Iterator<Item = &RepositoryName> {
        let names = self.repositories.keys();
        names.filter(|name| self.first_of(name) == *name)
    }

    /// The repository that this one is a copy of; itself when it is none.
    #[must_use]
    pub fn first_of<'a>(&'a self, name: &'a RepositoryName) -> &'a RepositoryName {
        let lists = self.workloads.values().map(|w| w.repositories.as_slice());
        lists
            .filter(|list| list.contains(name))
            .find_map(|list| list.first())
            .unwrap_or(name)
    }

    /// The copies of a repository, in the order in which workloads name them.
    #[must_use]
    pub fn copies_of(&self, first: &RepositoryName) -> Vec<RepositoryName> {
        let mut copies: Vec<RepositoryName> = Vec::new();
        for workload in self.workloads.values() {
            if workload.repositories.first() == Some(first) {
                for name in workload.repositories.iter().skip(1) {
                    if !copies.contains(name) {
                        copies.push(name.clone());
                    }
                }
            }
        }
        copies
    }

    /// A workload that names this repository in a list with another first one than `list` has.
    pub(crate) fn disagreement(
        &self,
        list: &[RepositoryName],
        name: &RepositoryName,
    ) -> Option<&WorkloadName> {
        let others = self.workloads.iter();
        others
            .filter(|(_, other)| other.repositories.contains(name))
            .find(|(_, other)| other.repositories.first() != list.first())
            .map(|(other, _)| other)
    }
}

/// One repository: exactly one of `path` and `s3`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// A local folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A bucket of an S3-compatible store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
    /// How long it takes until what it holds can be read, as stated and not measured: a tape that is
    /// fetched, a gateway that brings data back. Counts in the RTO of the workloads that name it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<HumanDuration>,
    /// Where its key is found.
    pub key: KeySource,
}

/// One workload: exactly one of `postgres`, `nats` and `files`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadConfig {
    /// The promise it is protected under.
    pub tier: TierName,
    /// The repositories its data goes to: the first one, and those that hold copies of it.
    pub repositories: Vec<RepositoryName>,
    /// A PostgreSQL cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSource>,
    /// NATS JetStream streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<NatsSource>,
    /// A folder of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSource>,
    /// How its data belongs to tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<TenancyConfig>,
}

/// A view of the one source a workload has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WorkloadSource<'a> {
    /// A PostgreSQL cluster.
    Postgres(&'a PostgresSource),
    /// NATS JetStream streams.
    Nats(&'a NatsSource),
    /// A folder of files.
    Files(&'a FilesSource),
}

impl WorkloadSource<'_> {
    /// The kind, as stored with restore points.
    #[must_use]
    pub fn kind(&self) -> WorkloadKind {
        match self {
            Self::Postgres(_) => WorkloadKind::Postgres,
            Self::Nats(_) => WorkloadKind::Nats,
            Self::Files(_) => WorkloadKind::Files,
        }
    }
}

/// A PostgreSQL cluster on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSource {
    /// `postgres://user@host:port/database`; a password comes from `password_env`, `password_file`
    /// or `PGPASSFILE`, never from here. A socket folder goes into `?host=/run/postgresql`.
    pub url: String,
    /// The cluster's data directory; on this host, unless base backups are received.
    pub data_directory: PathBuf,
    /// How base backups come by the cluster's files.
    #[serde(default, skip_serializing_if = "BaseBackupBy::is_default")]
    pub base_backup: BaseBackupBy,
    /// An environment variable that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// A file that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The folder of PostgreSQL's programs; found by major version when left out
    /// (`/usr/lib/postgresql/<major>/bin`, then PATH).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_directory: Option<PathBuf>,
    /// Files read at the same time during a base backup.
    #[serde(default = "default_read_parallelism")]
    pub read_parallelism: usize,
    /// Receives the WAL as it is written, for an RPO of seconds; by segments only when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamConfig>,
    /// The most that base backups read from its disk; as fast as it goes when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_rate: Option<Rate>,
    /// How often a base backup reads every file, whatever the WAL says of what changed; 7 days when left
    /// out. 0: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_read_every: Option<HumanDuration>,
    /// How much WAL may wait on the server to be archived. Beyond it what waits is given up, so that the
    /// server's disk does not fill: nothing is ever given up when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_queue_max: Option<Size>,
}

/// How base backups come by a cluster's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseBackupBy {
    /// They are read in the data directory, on this host.
    #[default]
    Read,
    /// The server sends them, from whatever host it is on.
    Receive,
}

impl BaseBackupBy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Every file is read so often where nothing is said: what rots on the source's disk, and what changed
/// without a word in the WAL, is seen only then.
const FULL_READ_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

impl PostgresSource {
    /// How often a base backup reads every file.
    #[must_use]
    pub fn full_read_every(&self) -> Duration {
        self.full_read_every
            .map_or(FULL_READ_EVERY, |every| every.0)
    }
}

/// How the WAL of a cluster is received as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// The replication slot, and the `application_name` by which `synchronous_standby_names` can ask for
    /// us; `dr_` and the workload's name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// How long what has arrived may wait until it is stored; 500 ms when left out. 0 stores at once, as
    /// fast as the repository is: for `synchronous_standby_names`, where each commit waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<HumanDuration>,
}

/// What has arrived waits no longer than this where nothing is said.
const STREAM_EVERY: Duration = Duration::from_millis(500);
/// A name has no more bytes (`NAMEDATALEN`).
const SLOT_BYTES_MAX: usize = 63;

impl StreamConfig {
    /// The slot's name for a workload.
    #[must_use]
    pub fn slot_of(&self, workload: &WorkloadName) -> String {
        self.slot.clone().unwrap_or_else(|| {
            let mut name = format!("dr_{}", workload.as_str().replace('-', "_"));
            name.truncate(SLOT_BYTES_MAX);
            name
        })
    }

    /// How long what has arrived may wait.
    #[must_use]
    pub fn every(&self) -> Duration {
        self.every.map_or(STREAM_EVERY, |every| every.0)
    }

    /// Whether the slot's name is one (`slot.c`, `ReplicationSlotValidateName`).
    pub(crate) fn has_good_name(&self) -> bool {
        self.slot.as_deref().is_none_or(|name| {
            let is_good =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            (1..=SLOT_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_good)
        })
    }
}

fn default_read_parallelism() -> usize {
    2
}

/// Streams of a NATS server with JetStream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsSource {
    /// `nats://host:port`.
    pub url: String,
    /// The streams that belong to this workload.
    pub streams: Vec<String>,
}

/// A folder of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// The folder.
    pub path: PathBuf,
}

/// How rows are spread over tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenancyModel {
    /// All tenants in the same tables.
    Pooled,
    /// One schema for each tenant.
    Schema,
    /// One database for each tenant.
    Database,
}

/// How a workload's data belongs to tenants. Databases use `model`, `column`, `tenants`, `tables`;
/// folders use `path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenancyConfig {
    /// How rows are spread over tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<TenancyModel>,
    /// The tenant column's name, or the several that it has: `tenant_id`, or `[tenant_id, "TenantId"]`.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub column: Names,
    /// A query that lists tenants as columns `id` (text) and `name` (text). Further columns are other ids by
    /// which tables may know a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<String>,
    /// Ids in the tenant column whose rows are everybody's: never restored, and no tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_ids: Vec<String>,
    /// The classes of tables that the system catalogs leave open, by `schema.table` or `table`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TenantTable>,
    /// For folders: a glob with `{name}` or `{id}` in it, relative to the workload's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What runs before and after a tenant's restore or its undo.
    #[serde(default, skip_serializing_if = "TenantHooks::is_empty")]
    pub hooks: TenantHooks,
}

/// What runs around writing to a tenant, in order. A preview runs none of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantHooks {
    /// First, to keep the tenant's users out. When one fails, nothing is changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<TenantHook>,
    /// After the commit, with the keys of the rows that were written: to bring search indexes and caches up to
    /// date.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<TenantHook>,
    /// Last, however it ended, once `before` was begun: to let the users in again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<TenantHook>,
}

impl TenantHooks {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &TenantHook> {
        let hooks = self.before.iter().chain(&self.changed);
        hooks.chain(&self.after)
    }

    pub(crate) fn headers_mut(&mut self) -> impl Iterator<Item = &mut HeaderSource> {
        let hooks = self.before.iter_mut().chain(&mut self.changed);
        let hooks = hooks.chain(&mut self.after);
        hooks
            .filter_map(|hook| match hook {
                TenantHook::Http(http) => Some(http.headers.values_mut()),
                TenantHook::Sql(_) | TenantHook::Command(_) => None,
            })
            .flatten()
    }

    /// Whether nothing runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.changed.is_empty() && self.after.is_empty()
    }

    /// Whether something runs once it is known how the restore ended.
    #[must_use]
    pub fn follow(&self) -> bool {
        !self.changed.is_empty() || !self.after.is_empty()
    }
}

/// One thing that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantHook {
    /// Statements for the tenant's database, in one transaction; `{id}`, `{name}` and `{restore}` become quoted
    /// literals. In `changed`, a temporary table `dr_changed (relation text, change text, key jsonb)` is there.
    Sql(String),
    /// A program and its arguments, without a shell. It finds the tenant in its environment; in `changed`, the
    /// rows are on its standard input, a line of JSON each.
    Command(Vec<String>),
    /// An HTTP request: what a program finds in its environment and on its standard input is in its body.
    Http(HttpHook),
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names(pub Vec<String>);

impl Names {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOr {
            expected: "a name, or a list of names",
            word: |name| Self(vec![name]),
            more: Self,
        })
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

/// Reads what can be written as one word or as more.
pub(crate) struct WordOr<T, M> {
    pub(crate) expected: &'static str,
    pub(crate) word: fn(String) -> T,
    pub(crate) more: fn(M) -> T,
}

impl<'de, T, M: Deserialize<'de>> Visitor<'de> for WordOr<T, M> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        Ok((self.word)(word.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        M::deserialize(MapAccessDeserializer::new(map)).map(self.more)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        M::deserialize(SeqAccessDeserializer::new(list)).map(self.more)
    }
}

/// The declared class of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantTable {
    /// Has its own tenant column, of this name: `{ direct: company }`.
    Direct(DirectBy),
    /// Belongs to the row that it refers to: `{ via: order_id }`.
    Via(ViaBy),
    /// Belongs to the row that it refers to, in one table or another:
    /// `{ polymorphic: { type: about, id: about_id, to: { order: public.sales_order.order_id } } }`.
    Polymorphic(Polymorphic),
    /// Belongs to all tenants; never written by a tenant restore: `shared`.
    Shared,
    /// Belongs to nobody (queues, caches); never written: `ignored`.
    Ignored,
}

/// The tenant column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DirectBy {
    /// It holds the tenant's id.
    Column(String),
    /// It holds another id of the tenant's: `{ column: company_code, id: code }`.
    OtherId(OtherId),
}

/// A tenant column that holds another id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherId {
    /// The column.
    pub column: String,
    /// Which column of the `tenants` query has its values.
    pub id: String,
}

/// What leads from a row to the one it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ViaBy {
    /// A foreign key's only column, or its name.
    Key(String),
    /// Columns without a foreign key, each with what it refers to: `{ order_no: public.sales_order.order_no }`.
    Columns(BTreeMap<String, String>),
}

/// A reference to one of several tables, without a foreign key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Polymorphic {
    /// The column that says to which.
    #[serde(rename = "type")]
    pub kind: String,
    /// The column that refers.
    pub id: String,
    /// What it refers to, `schema.table.column`, by the value of the first.
    pub to: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for DirectBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOr {
            expected: "a column, or `{ column: …, id: … }`",
            word: Self::Column,
            more: Self::OtherId,
        })
    }
}

impl<'de> Deserialize<'de> for ViaBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOr {
            expected: "a foreign key's column or name, or `{ column: schema.table.column }`",
            word: Self::Key,
            more: Self::Columns,
        })
    }
}

impl From<&str> for DirectBy {
    fn from(column: &str) -> Self {
        Self::Column(column.to_owned())
    }
}

impl From<&str> for ViaBy {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}
