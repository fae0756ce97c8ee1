//! What a database holds, table by table as text, and whether its foreign keys hold: in plain SQL over
//! the system catalogs, by nothing that the product knows.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::cluster::Cluster;
use super::schema::Schema;

/// Rows of a tenant: by table, each row's text as often as it occurs, sorted.
pub(crate) type Rows = BTreeMap<String, Vec<String>>;

/// All rows of one tenant. Types of rows are spelt out by `row_to_json`-free text, so that 1.0 and
/// 1.00 differ.
#[track_caller]
pub(crate) fn rows_of(cluster: &Cluster, schema: &Schema, tenant: &str) -> Rows {
    let parts: Vec<String> = schema
        .tables
        .iter()
        .map(|table| {
            format!(
                "select '{name}' || E'\\t' || replace(replace(t::text, E'\\\\', E'\\\\\\\\'), E'\\n', '\\n') \
                 from {name} t where {condition}",
                name = table.name,
                condition = table.belongs.replace("$T", &format!("'{tenant}'")),
            )
        })
        .collect();
    let mut rows: Rows = schema
        .tables
        .iter()
        .map(|table| (table.name.to_owned(), Vec::new()))
        .collect();
    for line in cluster.psql(&parts.join(" union all ")) {
        let (table, row) = line.split_once('\t').unwrap();
        rows.get_mut(table).unwrap().push(row.to_owned());
    }
    rows.values_mut().for_each(|rows| rows.sort());
    rows
}

/// What is in one and not in the other, in words; empty when they are equal.
pub(crate) fn differences(expected: &Rows, found: &Rows) -> Vec<String> {
    let mut all = Vec::new();
    for (table, rows) in expected {
        let other = found.get(table).cloned().unwrap_or_default();
        let count = |rows: &[String]| {
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            rows.iter()
                .for_each(|row| *counts.entry(row.clone()).or_default() += 1);
            counts
        };
        let (mut before, after) = (count(rows), count(&other));
        for (row, number) in after {
            *before.entry(row).or_default() -= number;
        }
        let shorten = |row: &str| row.chars().take(160).collect::<String>();
        for (row, number) in before {
            match number {
                0 => {}
                1.. => all.push(format!("{table}: missing {}", shorten(&row))),
                _ => all.push(format!("{table}: too many {}", shorten(&row))),
            }
        }
    }
    all
}

/// Rows that refer to nothing, by constraint, of every foreign key of the database. Replaces trust in
/// the server, which does not check while `session_replication_role` is `replica`.
#[track_caller]
pub(crate) fn foreign_key_violations(cluster: &Cluster) -> Vec<String> {
    let queries = cluster.psql(
        "select format('select %L || count(*) from %s c where %s and not exists \
           (select 1 from %s p where %s) having count(*) > 0', \
           k.conrelid::regclass || ' ' || k.conname || ': ', k.conrelid::regclass, \
           string_agg(format('c.%I is not null', ca.attname), ' and '), k.confrelid::regclass, \
           string_agg(format('p.%I = c.%I', pa.attname, ca.attname), ' and ')) \
         from pg_constraint k \
         cross join lateral unnest(k.conkey, k.confkey) as cols(child, parent) \
         join pg_attribute ca on ca.attrelid = k.conrelid and ca.attnum = cols.child \
         join pg_attribute pa on pa.attrelid = k.confrelid and pa.attnum = cols.parent \
         where k.contype = 'f' and k.conparentid = 0 \
         group by k.oid, k.conrelid, k.confrelid, k.conname order by 1",
    );
    assert!(!queries.is_empty(), "no foreign keys were found");
    cluster.psql(&queries.join(" union all "))
}

#[track_caller]
pub(crate) fn assert_foreign_keys_hold(cluster: &Cluster, when: &str) {
    let violations = foreign_key_violations(cluster);
    assert!(violations.is_empty(), "{when}: {violations:?}");
}

/// Everything below a folder: kind, permissions, and content or target, by relative path.
pub(crate) fn folder_state(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let mode = meta.permissions().mode() & 0o7777;
            let state = if meta.is_symlink() {
                format!("link {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_dir() {
                open.push(path);
                format!("folder {mode:o}")
            } else {
                let content = fs::read(&path).unwrap();
                format!("file {mode:o} {}", String::from_utf8_lossy(&content))
            };
            found.insert(name, state);
        }
    }
    found
}
