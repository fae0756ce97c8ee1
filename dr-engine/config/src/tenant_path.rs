//! Which tenant a path belongs to, by `tenancy.path`: a glob with `{name}` or `{id}` in it.
//!
//! One pattern serves both ways. For a tenant, its name is put into the pattern, and the glob that
//! results tells its paths. For a path, every part of it that could be the name is tried as one, by
//! the same glob; so both ways can never disagree.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use globset::{GlobBuilder, GlobMatcher};

/// The paths of one tenant.
#[derive(Debug, Clone)]
pub struct TenantGlob {
    all: GlobMatcher,
    top: Option<GlobMatcher>,
}

impl TenantGlob {
    /// Understands a glob in which no tenant stands open any more. `*` does not go past a `/`.
    ///
    /// # Errors
    /// What is wrong with the glob.
    pub fn new(glob: &str) -> Result<Self, String> {
        let build = |pattern: &str| {
            GlobBuilder::new(pattern)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map(|glob| glob.compile_matcher())
                .map_err(|error| error.kind().to_string())
        };
        Ok(Self {
            all: build(glob)?,
            top: glob.strip_suffix("/**").map(build).transpose()?,
        })
    }

    /// Whether a path is the tenant's; the folder that `x/**` lies in is too.
    #[must_use]
    pub fn is_match(&self, path: &str) -> bool {
        self.all.is_match(path) || self.top.as_ref().is_some_and(|top| top.is_match(path))
    }
}

/// A `tenancy.path`, for asking whose a path is.
#[derive(Debug)]
pub struct TenantPath {
    pattern: String,
    place: &'static str,
    /// Which part of a path names the tenant; none when `**` stands before it.
    part: Option<usize>,
    /// What stands beside the tenant within its part of the path.
    before: String,
    after: String,
    /// One for each name that was tried; a tree has far fewer of them than files.
    globs: Mutex<HashMap<String, Option<Arc<TenantGlob>>>>,
}

/// Globs kept at most, of some kilobytes each; those beyond are made anew each time.
const GLOBS_MAX: usize = 10_000;

impl TenantPath {
    /// Understands a pattern. `None` when whose a path is cannot be told from the path alone: `{name}`
    /// and `{id}` both, neither, one of them twice, or with wildcards in the same part of the path.
    #[must_use]
    pub fn new(pattern: &str) -> Option<Self> {
        let place = match (
            pattern.matches("{name}").count(),
            pattern.matches("{id}").count(),
        ) {
            (1, 0) => "{name}",
            (0, 1) => "{id}",
            _ => return None,
        };
        let number = pattern.split('/').position(|part| part.contains(place))?;
        let (before, after) = pattern.split('/').nth(number)?.split_once(place)?;
        let anywhere = pattern.split('/').take(number).any(|part| part == "**");
        let wild = |text: &str| text.contains(['*', '?', '[', '{', '\\']);
        if wild(before) || wild(after) || TenantGlob::new(&pattern.replace(place, "x")).is_err() {
            return None;
        }
        Some(Self {
            pattern: pattern.to_owned(),
            place,
            part: (!anywhere).then_some(number),
            before: before.to_owned(),
            after: after.to_owned(),
            globs: Mutex::default(),
        })
    }

    /// The tenant that a path belongs to, as `dr` names tenants: its name, or `id:` and its id.
    #[must_use]
    pub fn tenant_of(&self, path: &str) -> Option<String> {
        let found = path.split('/').enumerate().find_map(|(number, part)| {
            if self.part.is_some_and(|only| only != number) {
                return None;
            }
            let value = part
                .strip_prefix(self.before.as_str())?
                .strip_suffix(self.after.as_str())?;
            let owned = !value.is_empty() && self.glob_of(value)?.is_match(path);
            owned.then_some(value)
        })?;
        Some(match self.place {
            "{id}" => format!("id:{found}"),
            _ => found.to_owned(),
        })
    }

    fn glob_of(&self, value: &str) -> Option<Arc<TenantGlob>> {
        let mut globs = self.globs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = globs.get(value) {
            return known.clone();
        }
        let glob = self.pattern.replace(self.place, &globset::escape(value));
        let made = TenantGlob::new(&glob).ok().map(Arc::new);
        if globs.len() < GLOBS_MAX {
            globs.insert(value.to_owned(), made.clone());
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(pattern: &str, path: &str) -> Option<String> {
        TenantPath::new(pattern)
            .expect("a pattern that tells")
            .tenant_of(path)
    }

    #[test]
    fn a_path_is_told_to_its_tenant() {
        for (pattern, path, tenant) in [
            ("{name}/**", "acme", Some("acme")),
            ("{name}/**", "acme/a/b.yaml", Some("acme")),
            ("{name}/**", "a [b]*/x", Some("a [b]*")),
            ("tenants/{name}/**", "tenants/acme/x", Some("acme")),
            ("tenants/{name}/**", "tenants", None),
            ("tenants/{name}/**", "shared/acme/x", None),
            ("{name}.yaml", "acme.yaml", Some("acme")),
            ("{name}.yaml", "deep/acme.yaml", None),
            ("**/{name}.yaml", "deep/down/acme.yaml", Some("acme")),
            ("t-{name}-conf/*.ini", "t-acme-conf/x.ini", Some("acme")),
            ("t-{name}-conf/*.ini", "t-acme-conf/deep/x.ini", None),
            ("t-{name}-conf/*.ini", "t--conf/x.ini", None),
            ("{id}/**", "42/x", Some("id:42")),
            ("x/{name}/y/**", "x/x/y/z", Some("x")),
        ] {
            assert_eq!(
                whose(pattern, path).as_deref(),
                tenant,
                "{path} by {pattern}"
            );
        }
    }

    #[test]
    fn a_pattern_that_does_not_tell_is_none() {
        for pattern in [
            "**",
            "{name}/{id}/**",
            "{name}/{name}",
            "a*{name}/**",
            "{name}/[",
            "",
        ] {
            assert!(TenantPath::new(pattern).is_none(), "{pattern}");
        }
    }
}
