//! The form of an entry, and what is told of an application.

mod copy;

use super::ledger::{understood, written};
use super::*;

/// An entry as version 1 stores it. Never edited: what was recorded has to be understood for ever.
const STORED: &str = include_str!("tests/erasure-1.json");

fn entry() -> Erasure {
    let table = |name: &str, rows| ErasedTable {
        table: TableName {
            schema: "public".to_owned(),
            name: name.to_owned(),
        },
        whose: "t.\"tenant_id\" operator(pg_catalog.=) '7'::integer".to_owned(),
        rows,
    };
    let public = |name: &str| TableName {
        schema: "public".to_owned(),
        name: name.to_owned(),
    };
    Erasure {
        version: Erasure::VERSION,
        id: "er-20261128T220000Z-0a1b2c".parse().unwrap(),
        workload: "erp".parse().unwrap(),
        tenant: ErasedTenant {
            id: "7".to_owned(),
            name: "ACME".to_owned(),
            id_type: None,
        },
        scope: ErasureScope::Rows,
        dependents: true,
        reason: "request 4711".to_owned(),
        by: "anna".to_owned(),
        at: "2026-11-28T22:00:00Z".parse().unwrap(),
        databases: vec![ErasedDatabase {
            database: "erp".to_owned(),
            whole: Some(WholePlace::Schema("t_7".to_owned())),
            tables: vec![
                table(
                    "customer",
                    ErasedRows::Keys {
                        columns: vec!["tenant_id".to_owned(), "no".to_owned()],
                        keys: vec![vec!["7".to_owned(), "4711".to_owned()]],
                    },
                ),
                table("setting", ErasedRows::All),
                table("address", ErasedRows::Dependent),
            ],
            links: vec![ErasedLink {
                child: public("comment"),
                columns: vec!["about_id".to_owned()],
                parent: public("customer"),
                parent_columns: vec!["no".to_owned()],
                only: Some(("about".to_owned(), "customer".to_owned())),
            }],
            tenant_columns: vec!["tenant_id".to_owned()],
            others: vec![public("country")],
        }],
        folders: vec![ErasedFolder {
            workload: "config".parse().unwrap(),
            path: "ACME/**".to_owned(),
        }],
    }
}

#[test]
fn an_entry_is_stored_as_it_was_before() {
    let text = String::from_utf8(written(&entry()).unwrap()).unwrap();
    assert_eq!(text, STORED.trim_end());
    assert_eq!(understood(STORED.as_bytes()).unwrap(), entry());
    let newer = STORED.replacen("\"version\": 1", "\"version\": 2", 1);
    let why = understood(newer.as_bytes()).unwrap_err();
    assert!(why.contains("newer version of dr"), "{why}");
    assert!(understood(b"{}").is_err());
}

#[test]
fn an_application_is_told_in_a_line() {
    let mut applied = AppliedErasures::default();
    assert_eq!(applied.to_string(), "erasures: the ledger has none");
    let of = entry();
    applied.entries.push(AppliedErasure {
        id: of.id,
        at: of.at,
        tenant: of.tenant,
        tables: vec![ErasedCount {
            table: "public.customer".to_owned(),
            erased: 3,
            cleared: 1,
        }],
        files: 2,
    });
    let text = "erasures applied: 1 entry, 3 rows, 2 files; none pending";
    assert_eq!(applied.to_string(), text);
    applied.pending = 1;
    assert!(applied.to_string().ends_with("1 NOT APPLIED, as was asked"));
}

#[test]
fn an_entry_says_whom_it_concerns() {
    let entry = entry();
    let concerns = |name: &str| entry.concerns(&name.parse().unwrap());
    assert!(concerns("erp") && concerns("config") && !concerns("orders"));
    assert!(!entry.is_whole("7"));
}
