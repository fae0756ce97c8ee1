//! The certificate of a tenant's restore: for the customer, so in plain words first.

use super::page::{NOT_MEASURED, Page, code, escape, given, judged, listed, measured, none, time};
use crate::certificate::{Certificate, CertifiedErasure, CertifiedTable, Verdict};

/// The certificate of one tenant's restore. `key` is the public key under which it is signed.
#[must_use]
pub fn certificate(certificate: &Certificate, key: &str) -> String {
    let title = format!("Restore certificate {}", certificate.id);
    let mut page = Page::new(&title);
    head(&mut page, certificate);
    facts(&mut page, certificate);
    tables(&mut page, certificate);
    proof(&mut page, certificate);
    page.section("5", "Signature");
    page.paragraph(
        "Every character of this page is signed (Ed25519). `dr tenant verify-certificate` with this file tells \
         whether anything was changed since, and whether the key is the one it is expected to be. Compare the key \
         with the one you were given by another way.",
    );
    page.facts(&[("Public key", code(key))]);
    page.finish(&format!(
        "Certificate {} · form version {} · made by {} · all times UTC · what was not measured is printed as such",
        certificate.id, certificate.version, certificate.program
    ))
}

fn is_undo(certificate: &Certificate) -> bool {
    certificate.undo_of.is_some()
}

fn head(page: &mut Page, certificate: &Certificate) {
    let kicker = match is_undo(certificate) {
        true => "A restore was taken back",
        false => "Restore of one customer's data",
    };
    let badge = certificate.verdict;
    let class = match badge {
        Verdict::Proved | Verdict::NothingDiffered => "good",
        Verdict::ProvedInPart => "warn",
        Verdict::NotProved => "bad",
    };
    let to = match (&certificate.undo_of, &certificate.target) {
        (Some(of), _) => format!("to the state from before {of}"),
        (None, Some(target)) => format!("to its state at {target}"),
        (None, None) => String::new(),
    };
    page.raw(&format!(
        "<header><div class=lead><div><p class=kicker>{kicker} · {}</p><h1>{}</h1><p>{}</p></div>\
         <div class=\"badge {class}\">{badge}<small>{}</small></div></div></header>",
        escape(&certificate.workload),
        escape(&certificate.tenant.name),
        escape(&to),
        escape(&time(certificate.finished))
    ));
    let total =
        |count: fn(&CertifiedTable) -> u64| -> u64 { certificate.tables.iter().map(count).sum() };
    let figure = |name: &str, value: String, of: &str| {
        format!(
            "<div class=figure><span class=name>{name}</span><b>{value}</b><span class=of>{of}</span></div>"
        )
    };
    page.raw(&format!(
        "<div class=figures>{}{}{}{}</div>",
        figure(
            "Rows brought back",
            total(|table| table.inserted).to_string(),
            "were gone"
        ),
        figure(
            "Rows put right",
            total(|table| table.updated).to_string(),
            "had other content"
        ),
        figure(
            "Rows removed",
            total(|table| table.deleted).to_string(),
            "were not there then"
        ),
        // Counted by PostgreSQL before the commit, without which there is none.
        figure("Other customers", "0".to_owned(), "rows written"),
    ));
}

fn facts(page: &mut Page, certificate: &Certificate) {
    page.section("1", "What was done");
    let reached = certificate.reached.as_ref();
    let position = reached.and_then(|reached| reached.lsn.clone());
    let commit = reached.and_then(|reached| reached.last_commit.map(time));
    let mut facts = vec![
        ("Restore", code(&certificate.id)),
        (
            "Customer",
            format!(
                "{} (id {})",
                escape(&certificate.tenant.name),
                escape(&certificate.tenant.id)
            ),
        ),
    ];
    match &certificate.undo_of {
        Some(of) => facts.push(("Takes back", code(of))),
        None => facts.extend([
            ("Moment asked for", given(certificate.target.as_deref())),
            ("Last change contained", measured(commit)),
            ("Log position", measured(position)),
        ]),
    }
    facts.extend([
        ("Manner", escape(&certificate.mode)),
        (
            "Limited to",
            listed(&certificate.only, "nothing: all data of the customer"),
        ),
        ("Asked for by", given(certificate.by.as_deref())),
        ("On host", given(certificate.host.as_deref())),
        ("Begun", escape(&time(certificate.started))),
        ("Checked until", escape(&time(certificate.finished))),
        (
            "Database transaction",
            certificate
                .transaction
                .as_deref()
                .map_or_else(|| none("none: no row differed"), escape),
        ),
        (
            "State from before",
            certificate
                .undo_point
                .as_deref()
                .map_or_else(|| none("nothing was changed"), code),
        ),
        ("Told", listed(&certificate.notes, "nothing")),
    ]);
    if let Some(entries) = &certificate.erasures {
        facts.push(("Erasures", erasures(entries)));
    }
    page.facts(&facts);
}

/// What was to be forgotten, and that nothing of it is left to be applied.
fn erasures(entries: &[CertifiedErasure]) -> String {
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            format!(
                "{} of {}: {} rows not brought back",
                entry.id,
                time(entry.recorded),
                entry.rows
            )
        })
        .collect();
    match lines.as_slice() {
        [] => escape("the operator's ledger has none of the customer's data"),
        lines => format!(
            "{} applied, none pending: {}",
            lines.len(),
            listed(lines, "")
        ),
    }
}

fn tables(page: &mut Page, certificate: &Certificate) {
    page.section("2", "Tables");
    page.paragraph(
        "Rows written, and the customer's rows as they were read again afterwards. The checksum is the SHA-256 of \
         all of these rows; the same rows have the same checksum, in whatever order they lie.",
    );
    let rows: Vec<Vec<String>> = certificate
        .tables
        .iter()
        .map(|table| {
            vec![
                code(&table.table),
                table.inserted.to_string(),
                table.updated.to_string(),
                table.deleted.to_string(),
                measured(table.rows.map(|rows| rows.to_string())),
                table
                    .sha256
                    .as_deref()
                    .map_or_else(|| none(NOT_MEASURED), code),
            ]
        })
        .collect();
    page.table(
        &[
            "Table",
            "#Inserted",
            "#Updated",
            "#Deleted",
            "#Rows now",
            "Checksum",
        ],
        &rows,
        "no table was written",
    );
    page.section("3", "Files");
    let rows: Vec<Vec<String>> = certificate
        .folders
        .iter()
        .map(|folder| {
            vec![
                escape(&folder.workload),
                folder.written.to_string(),
                folder.removed.to_string(),
            ]
        })
        .collect();
    page.table(
        &["Workload", "#Written", "#Removed"],
        &rows,
        "no file was written",
    );
}

fn proof(page: &mut Page, certificate: &Certificate) {
    page.section("4", "What was shown");
    let rows: Vec<Vec<String>> = certificate
        .proof
        .iter()
        .map(|line| {
            vec![
                escape(&line.what),
                judged(line.holds, "holds", "DOES NOT HOLD"),
                escape(&line.detail),
            ]
        })
        .collect();
    page.table(&["Statement", "Result", "Seen"], &rows, NOT_MEASURED);
}
