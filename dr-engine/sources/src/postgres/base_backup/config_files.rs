//! Configuration that lies outside the data directory, as Debian's does.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::postgres::config_text::{DEPTH_MAX, included, parse_line};
use crate::postgres::details::{ConfigFile, ConfigRole};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// Where the server says its configuration is; `None` where the role may not know.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigPaths {
    pub(super) main: Option<PathBuf>,
    pub(super) hba: Option<PathBuf>,
    pub(super) ident: Option<PathBuf>,
}

/// Finds all files outside `data_directory` that configure the server.
pub(super) fn find(
    paths: &ConfigPaths,
    data_directory: &Path,
) -> Result<Vec<ConfigFile>, SourceError> {
    let inside = std::fs::canonicalize(data_directory)
        .map_err(SourceError::file("examine", data_directory))?;
    let base = paths
        .main
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .unwrap_or_default();
    let mut search = Search {
        inside,
        base,
        found: Vec::new(),
        seen: HashSet::new(),
    };
    let roots = [
        (&paths.main, ConfigRole::Main),
        (&paths.hba, ConfigRole::Hba),
        (&paths.ident, ConfigRole::Ident),
    ];
    for (path, role) in roots {
        if let Some(path) = path.as_ref().filter(|path| path.is_file()) {
            search.visit(path, role, 0)?;
        }
    }
    Ok(search.found)
}

struct Search {
    inside: PathBuf,
    /// The folder of the main file: names in the point are relative to it.
    base: PathBuf,
    found: Vec<ConfigFile>,
    seen: HashSet<PathBuf>,
}

impl Search {
    fn visit(&mut self, path: &Path, role: ConfigRole, depth: u32) -> Result<(), SourceError> {
        let real = std::fs::canonicalize(path).map_err(SourceError::file("examine", path))?;
        if depth > DEPTH_MAX || !self.seen.insert(real.clone()) {
            return Ok(());
        }
        let text = std::fs::read(path).map_err(SourceError::file("read", path))?;
        if !real.starts_with(&self.inside) {
            let item = name(&self.base, path, self.found.len());
            self.found.push(ConfigFile {
                item,
                origin: path.to_owned(),
                role,
            });
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        for setting in String::from_utf8_lossy(&text)
            .lines()
            .filter_map(parse_line)
        {
            for file in included(&setting, folder)? {
                self.visit(&file, ConfigRole::Include, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// What a file of configuration is called in the point, the `number`th of them; `base` is the folder of the
/// main one.
pub(super) fn name(base: &Path, path: &Path, number: usize) -> String {
    let relative = path.strip_prefix(base).ok().and_then(Path::to_str);
    match relative.filter(|text| !text.split('/').any(|part| part == "..")) {
        Some(relative) => format!("config/{relative}"),
        None => {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            format!("config/outside/{number}-{}", name.unwrap_or_default())
        }
    }
}

/// Hands the files to the sink.
pub(super) fn capture(files: &[ConfigFile], sink: &dyn ItemSink) -> Result<u64, SourceError> {
    let mut bytes = 0;
    for file in files {
        let path = &file.origin;
        let failed = |error| SourceError::file("read", path)(error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let content = std::fs::read(path).map_err(failed)?;
        bytes += u64::try_from(content.len()).unwrap_or(0);
        let item = Item::from_metadata(file.item.clone(), ItemKind::File, &metadata);
        sink.file(&item, &mut content.as_slice(), ContentKind::Other)
            .map_err(|source| SourceError::Sink {
                item: item.path,
                source,
            })?;
    }
    Ok(bytes)
}
