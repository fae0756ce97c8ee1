//! Configuration that was captured from outside the data directory, put to use again.
//!
//! Into the data directory by default, under the names PostgreSQL looks for there: then the folder
//! starts by itself. Paths that would lead the copy back to the original (its data directory, its
//! pid file) are taken out; what cannot work on this host is taken out with a note.

use std::path::{Path, PathBuf};

use super::{ManifestFile, durable};
use crate::SourceError;
use crate::postgres::CaptureDetails;
use crate::postgres::config_text::{Setting, included, parse_line, setting_line};
use crate::postgres::details::{ConfigFile, ConfigRole};

/// What [`place_config`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlacedConfig {
    /// Files generated in the data directory, for the manifest.
    pub files: Vec<ManifestFile>,
    /// What an operator should know, a sentence each.
    pub notes: Vec<String>,
}

/// Puts captured configuration (files at the places of [`super::Place::Config`] below `captured`)
/// into the data directory, or into `config_into`, with its paths rewritten.
///
/// # Errors
/// When a file cannot be read or written durably.
pub fn place_config(
    data_directory: &Path,
    captured: &Path,
    details: &CaptureDetails,
    config_into: Option<&Path>,
) -> Result<PlacedConfig, SourceError> {
    let mut placement = Placement {
        data_directory,
        root: config_into.unwrap_or(data_directory),
        elsewhere: config_into.is_some(),
        details,
        placed: PlacedConfig::default(),
        ssl_off: false,
    };
    if config_into.is_some() {
        std::fs::create_dir_all(placement.root)
            .map_err(SourceError::file("create", placement.root))?;
    }
    for file in &details.config_files {
        let path = captured.join(without_prefix(&file.item));
        let text = std::fs::read(&path).map_err(SourceError::file("read", &path))?;
        placement.file(file, &text)?;
    }
    placement.main_inside()?;
    placement.switch_ssl_off()?;
    if let (Some(folder), Some(hba)) = (config_into, placement.target_of(ConfigRole::Hba)) {
        placement.placed.notes.push(format!(
            "the configuration is in {}; start the server with -c config_file={} (access rules: {hba})",
            folder.display(),
            folder.join("postgresql.conf").display(),
        ));
    }
    Ok(placement.placed)
}

fn without_prefix(item: &str) -> &str {
    item.strip_prefix("config/").unwrap_or(item)
}

/// Where a captured file goes, relative to the folder everything goes to.
fn target(file: &ConfigFile) -> String {
    match file.role {
        ConfigRole::Main => "postgresql.conf".to_owned(),
        ConfigRole::Hba => "pg_hba.conf".to_owned(),
        ConfigRole::Ident => "pg_ident.conf".to_owned(),
        ConfigRole::Include => match without_prefix(&file.item) {
            outside if outside.starts_with("outside/") => format!("config-{outside}"),
            relative => relative.to_owned(),
        },
    }
}

struct Placement<'a> {
    data_directory: &'a Path,
    root: &'a Path,
    elsewhere: bool,
    details: &'a CaptureDetails,
    placed: PlacedConfig,
    ssl_off: bool,
}

impl Placement<'_> {
    fn file(&mut self, file: &ConfigFile, text: &[u8]) -> Result<(), SourceError> {
        let target = target(file);
        let text = match file.role {
            ConfigRole::Main | ConfigRole::Include => self.rewrite(&file.origin, &target, text)?,
            ConfigRole::Hba | ConfigRole::Ident => text.to_vec(),
        };
        self.write(&target, &text)
    }

    /// A main file in the data directory may include files from outside: it has to find them.
    fn main_inside(&mut self) -> Result<(), SourceError> {
        let has = |role| {
            self.details
                .config_files
                .iter()
                .any(|file| file.role == role)
        };
        let path = self.data_directory.join("postgresql.conf");
        if self.elsewhere || has(ConfigRole::Main) || !has(ConfigRole::Include) || !path.is_file() {
            return Ok(());
        }
        let text = std::fs::read(&path).map_err(SourceError::file("read", &path))?;
        let origin = self.details.data_directory.join("postgresql.conf");
        let text = self.rewrite(&origin, "postgresql.conf", &text)?;
        self.write("postgresql.conf", &text)
    }

    /// At the end of the main file, where it beats every `ssl = on` before it.
    fn switch_ssl_off(&mut self) -> Result<(), SourceError> {
        if !self.ssl_off {
            return Ok(());
        }
        let path = self.root.join("postgresql.conf");
        let mut text = std::fs::read(&path).map_err(SourceError::file("read", &path))?;
        text.extend_from_slice(format!("\n{}\n", setting_line("ssl", "off")).as_bytes());
        self.write("postgresql.conf", &text)
    }

    fn write(&mut self, target: &str, text: &[u8]) -> Result<(), SourceError> {
        if let Some(parent) = Path::new(target).parent() {
            durable::folder(self.root, parent)?;
        }
        let file = durable::write(self.root, target, text)?;
        if !self.elsewhere {
            self.placed.files.retain(|file| file.path != target);
            self.placed
                .files
                .push(ManifestFile::of_content(target, text, &file)?);
        }
        Ok(())
    }

    fn target_of(&self, role: ConfigRole) -> Option<String> {
        let file = self
            .details
            .config_files
            .iter()
            .find(|file| file.role == role)?;
        Some(self.root.join(target(file)).display().to_string())
    }

    /// Line by line; a line that is not UTF-8 can only be a comment or a value we do not touch.
    fn rewrite(
        &mut self,
        origin: &Path,
        target: &str,
        text: &[u8],
    ) -> Result<Vec<u8>, SourceError> {
        let mut output = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let setting = std::str::from_utf8(line).ok().and_then(parse_line);
            let replaced = match setting {
                Some(setting) => self.replace(origin, target, &setting)?,
                None => Replacement::Keep,
            };
            match replaced {
                Replacement::Keep => output.extend_from_slice(line),
                Replacement::Lines(lines) => {
                    output.extend_from_slice(b"# restored by dr; was: ");
                    output.extend_from_slice(line.trim_ascii_end());
                    output.push(b'\n');
                    for line in lines {
                        output.extend_from_slice(line.as_bytes());
                        output.push(b'\n');
                    }
                }
            }
        }
        Ok(output)
    }

    fn replace(
        &mut self,
        origin: &Path,
        target: &str,
        setting: &Setting,
    ) -> Result<Replacement, SourceError> {
        let gone = Replacement::Lines(Vec::new());
        let value = setting.value.as_str();
        Ok(match setting.name.as_str() {
            "data_directory" => self.relocated(
                &setting.name,
                Some(self.data_directory.display().to_string()),
            ),
            "hba_file" => self.relocated(&setting.name, self.target_of(ConfigRole::Hba)),
            "ident_file" => self.relocated(&setting.name, self.target_of(ConfigRole::Ident)),
            "external_pid_file" | "stats_temp_directory" if !self.elsewhere => gone,
            "include" | "include_if_exists" | "include_dir" => {
                self.include(origin, target, setting)?
            }
            "unix_socket_directories" if !value.split(',').all(socket_folder_exists) => {
                self.note(setting, "a folder of it does not exist here");
                gone
            }
            "ssl_cert_file" | "ssl_key_file" | "ssl_ca_file" | "ssl_crl_file"
                if !value.is_empty() && !self.data_directory.join(value).exists() =>
            {
                self.note(setting, "the file does not exist here, so ssl is off");
                self.ssl_off = true;
                gone
            }
            _ => Replacement::Keep,
        })
    }

    /// Inside the data directory the default is right; elsewhere it has to be said.
    fn relocated(&self, name: &str, place: Option<String>) -> Replacement {
        match place {
            Some(place) if self.elsewhere => Replacement::Lines(vec![setting_line(name, &place)]),
            _ => Replacement::Lines(Vec::new()),
        }
    }

    fn include(
        &mut self,
        origin: &Path,
        target: &str,
        setting: &Setting,
    ) -> Result<Replacement, SourceError> {
        let base = origin.parent().unwrap_or(Path::new("/"));
        let wanted = base.join(&setting.value);
        let is_wanted = |file: &&ConfigFile| match setting.name.as_str() {
            "include_dir" => {
                file.origin.parent() == Some(&wanted) && file.role == ConfigRole::Include
            }
            _ => file.origin == wanted,
        };
        let mut files: Vec<&ConfigFile> =
            self.details.config_files.iter().filter(is_wanted).collect();
        files.sort_by(|a, b| a.origin.cmp(&b.origin));
        let folder = Path::new(target).parent().unwrap_or(Path::new(""));
        let up = "../".repeat(folder.components().count());
        let lines = files
            .iter()
            .map(|file| setting_line("include", &format!("{up}{}", self::target(file))));
        let lines: Vec<String> = lines.collect();
        let is_relative = Path::new(&setting.value).is_relative() && !setting.value.contains("..");
        if setting.name == "include_dir" && is_relative {
            // The folder has to exist even when it is empty, and keeps taking new files.
            durable::folder(self.root, &folder.join(&setting.value))?;
            return Ok(Replacement::Keep);
        }
        let finds_it_here = !included(setting, &self.root.join(folder))?.is_empty();
        if lines.is_empty() && (finds_it_here || setting.name == "include_if_exists") {
            return Ok(Replacement::Keep);
        }
        if lines.is_empty() {
            self.note(setting, "nothing of it was captured");
        }
        Ok(Replacement::Lines(lines))
    }

    fn note(&mut self, setting: &Setting, why: &str) {
        let Setting { name, value } = setting;
        self.placed
            .notes
            .push(format!("`{name} = '{value}'` was taken out: {why}"));
    }
}

fn socket_folder_exists(folder: &str) -> bool {
    let folder = folder.trim().trim_matches('"');
    // `@` begins an abstract name.
    folder.is_empty() || folder.starts_with('@') || PathBuf::from(folder).is_dir()
}

enum Replacement {
    Keep,
    Lines(Vec<String>),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::postgres::{CriticalSettings, PageChecks};

    fn details(origin: &Path, files: &[(&str, &str, ConfigRole)]) -> CaptureDetails {
        let file = |(item, origin_name, role): &(&str, &str, ConfigRole)| ConfigFile {
            item: format!("config/{item}"),
            origin: origin.join(origin_name),
            role: *role,
        };
        CaptureDetails {
            version: 1,
            data_directory: "/old/data".into(),
            server_version: "15.1".to_owned(),
            config_files: files.iter().map(file).collect(),
            tablespaces: Vec::new(),
            wal_directory: None,
            databases: Vec::new(),
            extensions: BTreeMap::new(),
            shared_preload_libraries: String::new(),
            critical_settings: CriticalSettings {
                max_connections: 1,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
                max_worker_processes: 8,
                max_wal_senders: 10,
            },
            pages: PageChecks::NotChecked,
            corrupt_pages: Vec::new(),
            notes: Vec::new(),
        }
    }

    const MAIN: &str = "data_directory = '/old/data'\nhba_file = '/etc/x/pg_hba.conf' # c\n\
        external_pid_file = '/run/x.pid'\nport = 5433\nssl = on\nssl_key_file = '/no/such'\n\
        unix_socket_directories = '/no/such/folder'\ninclude_dir = 'conf.d'\n\
        include '/opt/shared.conf'\ninclude_if_exists = 'absent.conf'\n";

    fn captured(home: &Path) -> CaptureDetails {
        let folder = home.join("captured");
        fs::create_dir_all(folder.join("outside")).unwrap();
        fs::write(folder.join("postgresql.conf"), MAIN).unwrap();
        fs::write(folder.join("pg_hba.conf"), "local all all peer\n").unwrap();
        fs::write(folder.join("outside/2-shared.conf"), "work_mem = '1MB'\n").unwrap();
        details(
            Path::new("/etc/x"),
            &[
                ("postgresql.conf", "postgresql.conf", ConfigRole::Main),
                ("pg_hba.conf", "pg_hba.conf", ConfigRole::Hba),
                (
                    "outside/2-shared.conf",
                    "/opt/shared.conf",
                    ConfigRole::Include,
                ),
            ],
        )
    }

    fn active(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let settings = text.lines().filter_map(parse_line);
        settings
            .map(|setting| format!("{} {}", setting.name, setting.value))
            .collect()
    }

    #[test]
    fn configuration_in_the_data_directory_names_nothing_of_the_original() {
        let home = tempfile::tempdir().unwrap();
        let details = captured(home.path());
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        let placed = place_config(&data, &home.path().join("captured"), &details, None).unwrap();
        assert_eq!(
            active(&data.join("postgresql.conf")),
            [
                "port 5433",
                "ssl on",
                "include_dir conf.d",
                "include config-outside/2-shared.conf",
                "include_if_exists absent.conf",
                "ssl off",
            ]
        );
        assert!(data.join("conf.d").is_dir() && data.join("pg_hba.conf").is_file());
        assert_eq!(
            active(&data.join("config-outside/2-shared.conf")),
            ["work_mem 1MB"]
        );
        assert_eq!(placed.notes.len(), 2, "{:?}", placed.notes);
        for file in &placed.files {
            let content = fs::read(data.join(&file.path)).unwrap();
            assert_eq!(file.size, content.len() as u64, "{}", file.path);
        }
    }

    #[test]
    fn configuration_put_elsewhere_leads_to_the_restored_folder() {
        let home = tempfile::tempdir().unwrap();
        let details = captured(home.path());
        let (data, into) = (home.path().join("data"), home.path().join("etc/new"));
        fs::create_dir(&data).unwrap();
        let from = home.path().join("captured");
        let placed = place_config(&data, &from, &details, Some(&into)).unwrap();
        assert_eq!(placed.files, [], "nothing of it is in the data directory");
        let active = active(&into.join("postgresql.conf"));
        assert!(
            active.contains(&format!("data_directory {}", data.display())),
            "{active:?}"
        );
        let hba = into.join("pg_hba.conf");
        assert!(
            active.contains(&format!("hba_file {}", hba.display())),
            "{active:?}"
        );
        assert!(hba.is_file());
    }

    #[test]
    fn a_main_file_inside_finds_what_it_included_from_outside() {
        let home = tempfile::tempdir().unwrap();
        let mut details = captured(home.path());
        details
            .config_files
            .retain(|file| file.role == ConfigRole::Include);
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(
            data.join("postgresql.conf"),
            "port = 1\ninclude '/opt/shared.conf'\n",
        )
        .unwrap();
        let placed = place_config(&data, &home.path().join("captured"), &details, None).unwrap();
        let lines = active(&data.join("postgresql.conf"));
        assert_eq!(lines, ["port 1", "include config-outside/2-shared.conf"]);
        assert!(
            placed
                .files
                .iter()
                .any(|file| file.path == "postgresql.conf")
        );
    }
}
