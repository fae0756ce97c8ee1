//! The files people write: the engine file `dr.yaml`, tiers, runbooks, drills and probes.
//!
//! Parsing and validating are pure: a text and the name of its file go in, a value or an error that
//! points at file, line and column comes out. Only [`Config::load`] and the `load` functions of the
//! other files touch the file system. Unknown keys are errors everywhere; the error names the
//! nearest known key.
//!
//! Relative paths are relative to the file they stand in and are absolute in the returned values.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod drill;
mod engine;
mod error;
mod exercise;
mod hook;
mod key_source;
mod load;
mod parse;
mod runbook;
mod s3;
mod schedule;
mod size;
mod tenant_path;
mod tier;
mod yaml;

pub use drill::{
    DetectConfig, DrillFile, EnvironmentConfig, FaultConfig, ObjectiveConfig, ProbeFile, ProbeUse,
    SandboxConfig,
};
pub use engine::{
    BaseBackupBy, DirectBy, EngineFile, FilesSource, Names, NatsSource, OtherId, Polymorphic,
    PostgresSource, PruneSchedule, RepositoryConfig, StreamConfig, TenancyConfig, TenancyModel,
    TenantHook, TenantHooks, TenantTable, ViaBy, WorkloadConfig, WorkloadSource,
};
pub use error::ConfigError;
pub use hook::{HeaderSource, HttpHook, SecretSource};
pub use key_source::{ChosenKey, KeyCommandSource, KeySource};
pub use load::{Config, Workload, check_rpo};
pub use runbook::{
    ApprovalStep, BackupStep, CommandStep, RescueWalStep, RestoreStep, RunbookFile, StartStep,
    Step, StepLimits, TenantRestoreStep, VerifySqlStep, VerifyStreamStep,
};
pub use s3::{BandwidthConfig, ObjectLockMode, S3Config};
pub use schedule::with_seconds;
pub use size::{InvalidRate, InvalidSize, Rate, Size};
pub use tenant_path::{TenantGlob, TenantPath};
pub use tier::{DrillSchedule, Retention, Schedule, Tier, VerifySchedule};
pub use yaml::to_yaml;
