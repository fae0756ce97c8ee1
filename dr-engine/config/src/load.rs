//! Loading and validating a whole configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dr_model::{HumanDuration, RepositoryName, TierName, WorkloadName};

use crate::parse::{invalid_at, parse, read, suggestion};
use crate::s3::wrong_class;
use crate::schedule::check_schedule;
use crate::{
    ConfigError, EngineFile, HeaderSource, RepositoryConfig, SecretSource, TenantHook, TenantHooks,
    Tier, WorkloadConfig, WorkloadSource,
};

/// A validated configuration: the engine file and every tier.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the engine file is; absolute.
    pub path: PathBuf,
    /// The engine file.
    pub engine: EngineFile,
    /// The tiers by name.
    pub tiers: BTreeMap<TierName, Tier>,
}

/// A workload with everything the configuration says of it.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Its name.
    pub name: &'a WorkloadName,
    /// Its section in the engine file.
    pub config: &'a WorkloadConfig,
    /// Its one source.
    pub source: WorkloadSource<'a>,
    /// Its tier.
    pub tier: &'a Tier,
}

const SYSTEM_CONFIG: &str = "/etc/dr-engine/dr.yaml";

impl Config {
    /// Finds the engine file: `given`, else `DR_CONFIG`, else `dr.yaml` here, else
    /// `/etc/dr-engine/dr.yaml`.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`] with the places looked at.
    pub fn find(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let chosen = given.map(Path::to_owned).or_else(|| {
            std::env::var_os("DR_CONFIG")
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        });
        if let Some(path) = chosen {
            return if path.is_file() {
                Ok(path)
            } else {
                Err(ConfigError::NotFound {
                    looked_at: vec![path.display().to_string()],
                })
            };
        }
        let places = [Path::new("dr.yaml"), Path::new(SYSTEM_CONFIG)];
        places
            .iter()
            .find(|path| path.is_file())
            .map(|path| path.to_path_buf())
            .ok_or_else(|| {
                let looked_at = places
                    .iter()
                    .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))
                    .map(|path| path.display().to_string())
                    .collect();
                ConfigError::NotFound { looked_at }
            })
    }

    /// Reads and validates the engine file and its tiers.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (mut config, text) = Self::load_engine(path)?;
        config.tiers = load_tiers(&config.engine.tiers, &config.path, &text)?;
        for (name, workload) in &config.engine.workloads {
            if let Some(tier) = config.tiers.get(&workload.tier)
                && workload.repositories.len() < usize::try_from(tier.copies).unwrap_or(usize::MAX)
            {
                return Err(invalid_at(
                    &config.path,
                    &text,
                    &["workloads:", &format!("{name}:"), "repositories:"],
                    format!(
                        "workload `{name}` names {} of the {} repositories that tier `{}` promises",
                        workload.repositories.len(),
                        tier.copies,
                        tier.tier
                    ),
                    "name one more place that is to hold a copy, or another tier".to_owned(),
                ));
            }
            config.lock_can_be_kept(name, workload, &text)?;
            config.class_can_be_kept(name, workload, &text)?;
            config.rto_can_be_kept(name, workload, &text)?;
            if !config.tiers.contains_key(&workload.tier) {
                let known = config.tiers.keys().map(TierName::as_str);
                return Err(invalid_at(
                    &config.path,
                    &text,
                    &[
                        "workloads:",
                        &format!("{name}:"),
                        "tier:",
                        workload.tier.as_str(),
                    ],
                    format!(
                        "workload `{name}` names tier `{}`, which does not exist",
                        workload.tier
                    ),
                    suggestion(workload.tier.as_str(), known),
                ));
            }
        }
        Ok(config)
    }

    /// A tier's `lock` is a promise that only a bucket with Object Lock can keep.
    fn lock_can_be_kept(
        &self,
        name: &WorkloadName,
        workload: &WorkloadConfig,
        text: &str,
    ) -> Result<(), ConfigError> {
        let asks = self
            .tiers
            .get(&workload.tier)
            .is_some_and(|tier| tier.lock.is_some());
        let first = workload.repositories.first();
        let locks = first
            .and_then(|first| self.engine.repositories.get(first))
            .and_then(|first| first.s3.as_ref())
            .is_some_and(|s3| s3.object_lock.is_some());
        if !asks || locks {
            return Ok(());
        }
        Err(invalid_at(
            &self.path,
            text,
            &["workloads:", &format!("{name}:"), "tier:"],
            format!(
                "tier `{}` promises a lock, and the first repository of workload `{name}` keeps none",
                workload.tier
            ),
            "name a bucket with `object_lock` first, or take `lock` out of the tier".to_owned(),
        ))
    }

    /// Only a bucket has storage classes.
    fn class_can_be_kept(
        &self,
        name: &WorkloadName,
        workload: &WorkloadConfig,
        text: &str,
    ) -> Result<(), ConfigError> {
        let tier = self.tiers.get(&workload.tier);
        let Some(class) = tier.and_then(|tier| tier.storage_class.as_deref()) else {
            return Ok(());
        };
        match self.first_of(workload) {
            Some((_, first)) if first.s3.is_none() => Err(invalid_at(
                &self.path,
                text,
                &["workloads:", &format!("{name}:"), "tier:"],
                format!(
                    "tier `{}` asks for storage class {class}, and the first repository of workload \
                     `{name}` is no bucket",
                    workload.tier
                ),
                "name a bucket first, or take `storage_class` out of the tier".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// What must be waited for before anything can be restored is part of the downtime.
    fn rto_can_be_kept(
        &self,
        name: &WorkloadName,
        workload: &WorkloadConfig,
        text: &str,
    ) -> Result<(), ConfigError> {
        let Some(tier) = self.tiers.get(&workload.tier) else {
            return Ok(());
        };
        let Some((first, retrieval)) = self
            .first_of(workload)
            .and_then(|(first, config)| Some((first, config.retrieval?)))
            .filter(|(_, retrieval)| retrieval.0 >= tier.rto.0)
        else {
            return Ok(());
        };
        Err(invalid_at(
            &self.path,
            text,
            &["workloads:", &format!("{name}:"), "tier:"],
            format!(
                "tier `{}` promises an RTO of {}, and repository `{first}` of workload `{name}` takes \
                 {retrieval} before anything can be read from it",
                workload.tier, tier.rto
            ),
            "name a repository first that answers sooner, or promise less".to_owned(),
        ))
    }

    /// The repository that a workload is restored from when all is well.
    fn first_of<'a>(
        &'a self,
        workload: &'a WorkloadConfig,
    ) -> Option<(&'a RepositoryName, &'a RepositoryConfig)> {
        let first = workload.repositories.first()?;
        Some((first, self.engine.repositories.get(first)?))
    }

    /// How long it takes until what a workload's first repository holds can be read, with that
    /// repository; `None` where it answers at once.
    #[must_use]
    pub fn retrieval_of(
        &self,
        workload: &WorkloadConfig,
    ) -> Option<(RepositoryName, HumanDuration)> {
        let (name, config) = self.first_of(workload)?;
        let retrieval = config.retrieval.filter(|time| !time.0.is_zero())?;
        Some((name.clone(), retrieval))
    }

    /// Reads only what WAL push and fetch need: the engine file, no tiers. As fast as can be.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_engine_only(path: &Path) -> Result<Self, ConfigError> {
        Self::load_engine(path).map(|(config, _)| config)
    }

    fn load_engine(path: &Path) -> Result<(Self, String), ConfigError> {
        let path = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let text = read(&path)?;
        let mut engine: EngineFile = parse(&text, &path)?;
        validate_engine(&engine, &path, &text)?;
        make_absolute(&mut engine, path.parent().unwrap_or(Path::new("/")));
        Ok((
            Self {
                path,
                engine,
                tiers: BTreeMap::new(),
            },
            text,
        ))
    }

    /// The workload of this name.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`] with the nearest known name.
    pub fn workload<'a>(&'a self, name: &str) -> Result<Workload<'a>, ConfigError> {
        self.workloads()
            .find(|workload| workload.name.as_str() == name)
            .ok_or_else(|| {
                let known = self.engine.workloads.keys().map(WorkloadName::as_str);
                ConfigError::Unknown {
                    what: "workload",
                    name: name.to_owned(),
                    path: self.path.clone(),
                    hint: suggestion(name, known),
                }
            })
    }

    /// All workloads, in order of name. Without tiers ([`Config::load_engine_only`]) there are none.
    pub fn workloads(&self) -> impl Iterator<Item = Workload<'_>> {
        self.engine.workloads.iter().filter_map(|(name, config)| {
            Some(Workload {
                name,
                config,
                source: config.source()?,
                tier: self.tiers.get(&config.tier)?,
            })
        })
    }

    /// The repository of this name.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`] with the nearest known name.
    pub fn repository(&self, name: &RepositoryName) -> Result<&RepositoryConfig, ConfigError> {
        self.engine.repositories.get(name).ok_or_else(|| {
            let known = self.engine.repositories.keys().map(RepositoryName::as_str);
            ConfigError::Unknown {
                what: "repository",
                name: name.to_string(),
                path: self.path.clone(),
                hint: suggestion(name.as_str(), known),
            }
        })
    }
}

impl WorkloadConfig {
    /// Its one source; a validated configuration always has one.
    #[must_use]
    pub fn source(&self) -> Option<WorkloadSource<'_>> {
        match (&self.postgres, &self.nats, &self.files) {
            (Some(postgres), None, None) => Some(WorkloadSource::Postgres(postgres)),
            (None, Some(nats), None) => Some(WorkloadSource::Nats(nats)),
            (None, None, Some(files)) => Some(WorkloadSource::Files(files)),
            _ => None,
        }
    }
}

fn validate_engine(engine: &EngineFile, path: &Path, text: &str) -> Result<(), ConfigError> {
    let prune = &engine.prune;
    check_schedule(path, text, "prune:", &prune.cron, prune.timezone.as_deref())?;
    for (name, repository) in &engine.repositories {
        let at = |message: String, hint: &str| {
            let here = format!("{name}:");
            invalid_at(
                path,
                text,
                &["repositories:", &here],
                message,
                hint.to_owned(),
            )
        };
        if repository.path.is_some() == repository.s3.is_some() {
            return Err(at(
                format!("repository `{name}` needs exactly one of `path` and `s3`"),
                "a local folder, or a bucket",
            ));
        }
        if let Some(wrong) = repository.s3.as_ref().and_then(crate::S3Config::wrong) {
            let here = format!("{name}:");
            let route = ["repositories:", &here, wrong.key];
            let hint = wrong.hint.to_owned();
            return Err(invalid_at(path, text, &route, wrong.message, hint));
        }
        if let Some((what, hint)) = repository.key.mistake() {
            return Err(invalid_at(
                path,
                text,
                &["repositories:", &format!("{name}:"), "key:"],
                format!("the key of repository `{name}` {what}"),
                hint.to_owned(),
            ));
        }
    }
    if !engine.catalog.starts_with("sqlite:") {
        return Err(invalid_at(
            path,
            text,
            &["catalog:"],
            format!("`{}` is no catalog", engine.catalog),
            "write sqlite:PATH".to_owned(),
        ));
    }
    engine.workloads.iter().try_for_each(|(name, workload)| {
        validate_workload(engine, name, workload, path, text)?;
        validate_hooks(name, workload, path, text)
    })
}

fn validate_workload(
    engine: &EngineFile,
    name: &WorkloadName,
    workload: &WorkloadConfig,
    path: &Path,
    text: &str,
) -> Result<(), ConfigError> {
    let here = format!("{name}:");
    let at = |inner: &[&str], message: String, hint: String| {
        let route: Vec<&str> = ["workloads:", here.as_str()]
            .into_iter()
            .chain(inner.iter().copied())
            .collect();
        Err(invalid_at(path, text, &route, message, hint))
    };
    if workload.source().is_none() {
        return at(
            &[],
            format!("workload `{name}` needs exactly one of `postgres`, `nats` and `files`"),
            "write two workloads for two sources".to_owned(),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    for repository in &workload.repositories {
        let route = ["repositories:", repository.as_str()];
        if !engine.repositories.contains_key(repository) {
            let known = engine.repositories.keys().map(RepositoryName::as_str);
            return at(
                &route,
                format!("workload `{name}` names repository `{repository}`, which does not exist"),
                suggestion(repository.as_str(), known),
            );
        }
        if !seen.insert(repository) {
            return at(
                &route,
                format!("workload `{name}` names repository `{repository}` twice"),
                "a copy is another place; name each once".to_owned(),
            );
        }
        if let Some(other) = engine.disagreement(&workload.repositories, repository) {
            return at(
                &route,
                format!(
                    "repository `{repository}` is a copy of one repository and not of another: \
                     workloads `{name}` and `{other}` disagree on the first"
                ),
                "a copy holds the same repository as the first of the list: the same one must be \
                 first wherever `repositories` names it"
                    .to_owned(),
            );
        }
    }
    if workload.repositories.is_empty() {
        return at(
            &["repositories:"],
            format!("workload `{name}` names no repository"),
            "name the repository, and after it those that hold copies of it".to_owned(),
        );
    }
    if let Some(postgres) = &workload.postgres
        && has_password(&postgres.url)
    {
        return at(
            &["url:"],
            format!("the URL of workload `{name}` holds a password"),
            "take it out and use password_env, password_file or PGPASSFILE".to_owned(),
        );
    }
    if let Some(stream) = workload
        .postgres
        .as_ref()
        .and_then(|one| one.stream.as_ref())
        && !stream.has_good_name()
    {
        return at(
            &["slot:"],
            format!("the slot of workload `{name}` has a name that PostgreSQL does not take"),
            "1 to 63 of a-z, 0-9 and _".to_owned(),
        );
    }
    if let Some(nats) = &workload.nats
        && has_password(&nats.url)
    {
        return at(
            &["url:"],
            format!("the URL of workload `{name}` holds a password"),
            "take it out; a NATS server that asks for one is not supported yet".to_owned(),
        );
    }
    if let Some(nats) = &workload.nats
        && nats.streams.is_empty()
    {
        return at(
            &["streams:"],
            format!("workload `{name}` names no stream"),
            "streams: [NAME]".to_owned(),
        );
    }
    Ok(())
}

fn validate_hooks(
    name: &WorkloadName,
    workload: &WorkloadConfig,
    path: &Path,
    text: &str,
) -> Result<(), ConfigError> {
    let hooks = workload
        .tenancy
        .iter()
        .flat_map(|tenancy| tenancy.hooks.all());
    let mut mistakes = hooks.filter_map(|hook| match hook {
        TenantHook::Http(http) => http.mistake(),
        TenantHook::Sql(_) | TenantHook::Command(_) => None,
    });
    let Some((message, hint)) = mistakes.next() else {
        return Ok(());
    };
    let here = format!("{name}:");
    let route = ["workloads:", &here, "hooks:", "http:"];
    let message = format!("{message} (workload `{name}`)");
    Err(invalid_at(path, text, &route, message, hint.to_owned()))
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or(authority);
    authority
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.contains(':'))
        || url.contains("password=")
}

fn make_absolute(engine: &mut EngineFile, folder: &Path) {
    let absolute = |path: &mut PathBuf| *path = normal(&folder.join(&path));
    for repository in engine.repositories.values_mut() {
        repository.path.iter_mut().for_each(absolute);
        repository.key.make_absolute(absolute);
    }
    absolute(&mut engine.tiers);
    if let Some(path) = engine.catalog.strip_prefix("sqlite:") {
        engine.catalog = format!("sqlite:{}", normal(&folder.join(path)).display());
    }
    for workload in engine.workloads.values_mut() {
        if let Some(postgres) = &mut workload.postgres {
            absolute(&mut postgres.data_directory);
            postgres.password_file.iter_mut().for_each(absolute);
            postgres.bin_directory.iter_mut().for_each(absolute);
        }
        if let Some(files) = &mut workload.files {
            absolute(&mut files.path);
        }
        let hooks = workload
            .tenancy
            .iter_mut()
            .map(|tenancy| &mut tenancy.hooks);
        for header in hooks.flat_map(TenantHooks::headers_mut) {
            if let HeaderSource::Secret(SecretSource::File(path)) = header {
                absolute(path);
            }
        }
    }
}

/// Without `.` and doubled or trailing slashes, so that a path is written one way. `..` stays: it may
/// lead through a link.
fn normal(path: &Path) -> PathBuf {
    path.components().collect()
}

fn load_tiers(
    folder: &Path,
    engine_path: &Path,
    engine_text: &str,
) -> Result<BTreeMap<TierName, Tier>, ConfigError> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        invalid_at(
            engine_path,
            engine_text,
            &["tiers:"],
            format!(
                "cannot read the folder of tiers, {}: {error}",
                folder.display()
            ),
            "`tiers` names a folder with one YAML file for each tier".to_owned(),
        )
    })?;
    let mut tiers = BTreeMap::new();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let tier = Tier::load(&path)?;
            tiers.insert(tier.tier.clone(), tier);
        }
    }
    Ok(tiers)
}

impl Tier {
    /// Reads and validates a tier file.
    ///
    /// # Errors
    /// What is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let tier: Self = parse(&text, path)?;
        let stem = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        // full.yaml is documentation: every key, never a workload's tier.
        if stem.as_deref() != Some(tier.tier.as_str()) {
            return Err(invalid_at(
                path,
                &text,
                &["tier:"],
                format!("tier `{}` stands in a file of another name", tier.tier),
                format!("name the file {}.yaml", tier.tier),
            ));
        }
        crate::parse::positive(path, &text, "rto", tier.rto)?;
        crate::parse::positive(path, &text, "rpo", tier.rpo)?;
        check_schedule(
            path,
            &text,
            "backup:",
            &tier.backup.cron,
            tier.backup.timezone.as_deref(),
        )?;
        if let Some(verify) = &tier.verify {
            check_schedule(
                path,
                &text,
                "verify:",
                &verify.cron,
                verify.timezone.as_deref(),
            )?;
        }
        if let Some(drill) = &tier.drill {
            check_schedule(
                path,
                &text,
                "drill:",
                &drill.cron,
                drill.timezone.as_deref(),
            )?;
        }
        if let Some(wrong) = tier.storage_class.as_deref().and_then(wrong_class) {
            return Err(invalid_at(
                path,
                &text,
                &[wrong.key],
                wrong.message,
                wrong.hint.to_owned(),
            ));
        }
        if let Some(level) = tier.compression
            && !(1..=19).contains(&level)
        {
            return Err(invalid_at(
                path,
                &text,
                &["compression:"],
                format!("compression {level} is out of range"),
                "1 (fast) to 19 (small)".to_owned(),
            ));
        }
        if tier.copies == 0 {
            return Err(invalid_at(
                path,
                &text,
                &["copies:"],
                "copies is 0: there is always the repository itself",
                "1 or more; it counts the first repository".to_owned(),
            ));
        }
        if tier.retention.min_redundancy == 0 {
            return Err(invalid_at(
                path,
                &text,
                &["min_redundancy:"],
                "min_redundancy is 0: retention could remove the last restore point",
                "1 or more".to_owned(),
            ));
        }
        Ok(tier)
    }
}

/// Whether a tier's RPO can be kept by a server that completes a segment after `archive_timeout_seconds`
/// at the latest; 0 means never by itself. Pure.
///
/// # Errors
/// Why not, and what to set.
pub fn check_rpo(tier: &Tier, archive_timeout_seconds: u64) -> Result<(), String> {
    let rpo = tier.rpo.0.as_secs();
    if archive_timeout_seconds == 0 {
        return Err(format!(
            "tier {} promises an RPO of {}, but archive_timeout is 0: a quiet server keeps its last \
             segment for ever; set archive_timeout to at most {} s",
            tier.tier,
            tier.rpo,
            rpo.div_ceil(2)
        ));
    }
    if archive_timeout_seconds > rpo {
        return Err(format!(
            "tier {} promises an RPO of {}, but archive_timeout is {archive_timeout_seconds} s; set it \
             to at most {} s",
            tier.tier,
            tier.rpo,
            rpo.div_ceil(2)
        ));
    }
    Ok(())
}
