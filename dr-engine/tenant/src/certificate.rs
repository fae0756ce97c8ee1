//! Certificates of tenant restores: made from what the repository keeps of a restore, signed, and verified.
//!
//! A certificate is two files. The JSON holds the values and a signature over their canonical form; the HTML
//! is for people, and its last line signs every byte before it. Both are made anew from the records whenever
//! they are asked for, and come out the same.

use dr_installation::Installation;
use dr_model::TenantRestoreId;
use dr_report::certificate::{
    CERTIFICATE_VERSION, Certificate, CertifiedErasure, CertifiedFolder, CertifiedProof,
    CertifiedTable, CertifiedTenant, Reached, Verdict,
};
use dr_store::Signature;
use serde::{Deserialize, Serialize};

use crate::execute::blocking;
use crate::record::{self, Ending, Outcome};
use crate::report::{ProofLine, ProofOutcome, TenantRestoreReport};
use crate::{Purpose, TenantError, hooks};

/// What the HTML's last line begins and ends with.
const MARK: &str = "<!-- dr-signature ed25519 ";
const MARK_END: &str = " -->\n";

/// A certificate, ready to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The values.
    pub certificate: Certificate,
    /// The JSON file.
    pub json: Vec<u8>,
    /// The HTML file.
    pub html: Vec<u8>,
}

/// The JSON file's form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedJson {
    /// A name that stands twice in it is refused: readers would differ in what they take.
    certificate: Certificate,
    signature: SignatureText,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureText {
    /// `Ed25519` (RFC 8032) over the canonical JSON (RFC 8785) of `certificate`.
    algorithm: String,
    /// The public key, in hexadecimal.
    key: String,
    value: String,
}

/// The certificate of a tenant restore or an undo.
///
/// # Errors
/// When there is no such restore, or it was rolled back or interrupted, or changed nothing.
pub async fn certificate(
    installation: &Installation,
    id: &TenantRestoreId,
) -> Result<Certified, TenantError> {
    let (installation, id) = (installation.clone(), id.clone());
    blocking("make the certificate", move || {
        let (repository, record) = record::find(&installation, &id)?;
        let ending = Ending::read(&repository, &id)?;
        let without = |why: &str| TenantError::NotCertified {
            id: id.clone(),
            why: why.to_owned(),
        };
        let report = match ending {
            Some(ending) if ending.outcome == Outcome::Committed => ending.report,
            Some(ending) if ending.outcome == Outcome::RolledBack => {
                return Err(without("it was rolled back and changed nothing"));
            }
            _ => {
                return Err(without(
                    "it was interrupted, so that nothing was shown of it",
                ));
            }
        };
        let mut report = report.ok_or_else(|| without("nothing is kept of what was shown"))?;
        if report.filter.is_everything() {
            report.filter = record.filter;
        }
        debug_assert_eq!(report.id, record.id);
        let sign = |document: &[u8]| {
            repository
                .sign(document)
                .map_err(|source| TenantError::Store {
                    action: "signing the certificate".to_owned(),
                    source,
                })
        };
        signed(of(&report), sign)
    })
    .await
}

fn signed(
    certificate: Certificate,
    sign: impl Fn(&[u8]) -> Result<Signature, TenantError>,
) -> Result<Certified, TenantError> {
    let form = |error| TenantError::format("the certificate", error);
    let signature = sign(&certificate.canonical())?;
    let key = hex::encode(&signature.key);
    let document = SignedJson {
        certificate: certificate.clone(),
        signature: SignatureText {
            algorithm: "Ed25519".to_owned(),
            key: key.clone(),
            value: hex::encode(&signature.value),
        },
    };
    let mut json = serde_json::to_vec_pretty(&document).map_err(form)?;
    json.push(b'\n');
    let mut html = dr_report::html::certificate(&certificate, &key).into_bytes();
    let signature = sign(&html)?;
    let line = format!("{MARK}{key} {}{MARK_END}", hex::encode(&signature.value));
    html.extend_from_slice(line.as_bytes());
    Ok(Certified {
        certificate,
        json,
        html,
    })
}

fn of(report: &TenantRestoreReport) -> Certificate {
    let (undo_of, target, reached) = match &report.purpose {
        Purpose::Undo { of } => (Some(of.to_string()), None, None),
        Purpose::Restore {
            target,
            lsn,
            last_commit_time,
            ..
        } => {
            let reached = Reached {
                lsn: lsn.map(|lsn| lsn.to_string()),
                last_commit: *last_commit_time,
            };
            (None, Some(target.to_string()), Some(reached))
        }
    };
    let what = match undo_of {
        Some(_) => "undo",
        None => "restore",
    };
    Certificate {
        version: CERTIFICATE_VERSION,
        id: report.id.to_string(),
        workload: report.workload.to_string(),
        tenant: CertifiedTenant {
            id: report.tenant.id.clone(),
            name: report.tenant.name.clone(),
        },
        what: what.to_owned(),
        undo_of,
        mode: report.mode.to_string(),
        only: match report.purpose {
            Purpose::Undo { .. } => vec!["what the restore had written".to_owned()],
            Purpose::Restore { .. } => report.filter.lines(),
        },
        target,
        reached,
        by: report.by.clone(),
        host: report.host.clone(),
        started: report.started,
        finished: report.finished,
        transaction: report.transaction.clone(),
        undo_point: report.undo_point.as_ref().map(ToString::to_string),
        tables: tables(report),
        folders: report
            .folders
            .iter()
            .map(|folder| CertifiedFolder {
                workload: folder.workload.to_string(),
                written: folder.written,
                removed: folder.removed,
            })
            .collect(),
        erasures: report.erasures.as_ref().map(|erasures| {
            let entries = erasures.entries.iter();
            let certified = entries.map(|entry| CertifiedErasure {
                id: entry.id.to_string(),
                recorded: entry.at,
                rows: entry.tables.iter().map(|table| table.erased).sum(),
            });
            certified.collect()
        }),
        verdict: verdict(report),
        proof: report.proof.iter().map(line_of).collect(),
        notes: report.warnings.clone(),
        program: format!("dr {}", env!("CARGO_PKG_VERSION")),
    }
}

/// A line of the proof. What hooks are called and say is the operator's, and may hold what others must not see.
fn line_of(line: &ProofLine) -> CertifiedProof {
    let holds = match line.outcome {
        ProofOutcome::Agrees => Some(true),
        ProofOutcome::Differs => Some(false),
        ProofOutcome::NotMeasured => None,
    };
    match hooks::when(&line.what) {
        Some(when) => CertifiedProof {
            what: format!("hook `{when}` ran"),
            holds,
            detail: match holds {
                Some(true) => "done".to_owned(),
                _ => "failed: the operator has the reason".to_owned(),
            },
        },
        None => CertifiedProof {
            what: line.what.clone(),
            holds,
            detail: line.detail.clone(),
        },
    }
}

fn verdict(report: &TenantRestoreReport) -> Verdict {
    if report.undo_point.is_none() {
        return Verdict::NothingDiffered;
    }
    let of_rows = report.proof.iter();
    let outcomes: Vec<ProofOutcome> = of_rows
        .filter(|line| hooks::when(&line.what).is_none())
        .map(|line| line.outcome)
        .collect();
    if outcomes.contains(&ProofOutcome::Differs) {
        Verdict::NotProved
    } else if outcomes.contains(&ProofOutcome::NotMeasured) || outcomes.is_empty() {
        Verdict::ProvedInPart
    } else {
        Verdict::Proved
    }
}

/// What was written, and what was read again: one line for each table that has either.
fn tables(report: &TenantRestoreReport) -> Vec<CertifiedTable> {
    let mut tables: Vec<CertifiedTable> = report
        .tables
        .iter()
        .map(|table| CertifiedTable {
            table: table.table.clone(),
            inserted: table.inserted,
            updated: table.updated,
            deleted: table.deleted,
            rows: None,
            sha256: None,
        })
        .collect();
    for content in &report.content {
        match tables.iter_mut().find(|table| table.table == content.table) {
            Some(table) => {
                table.rows = Some(content.rows);
                table.sha256 = Some(content.sha256.clone());
            }
            None if content.rows > 0 => tables.push(CertifiedTable {
                table: content.table.clone(),
                inserted: 0,
                updated: 0,
                deleted: 0,
                rows: Some(content.rows),
                sha256: Some(content.sha256.clone()),
            }),
            None => {}
        }
    }
    tables
}

/// A document whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// `json` or `html`.
    pub form: &'static str,
    /// The public key it is signed under, in hexadecimal. Whose it is, the document cannot tell.
    pub key: String,
    /// The values; of the JSON only.
    pub certificate: Option<Certificate>,
}

/// Verifies either file of a certificate: that not one byte of the HTML, not one value of the JSON was
/// changed since it was signed under the key it names. Pure.
///
/// # Errors
/// Says what is wrong with it.
pub fn verify(document: &[u8]) -> Result<Verified, TenantError> {
    let text = std::str::from_utf8(document).map_err(|_| unsigned("it is no text"))?;
    match text.trim_start().starts_with('{') {
        true => verify_json(text),
        false => verify_html(text),
    }
}

fn unsigned(why: impl Into<String>) -> TenantError {
    TenantError::NotGenuine(why.into())
}

fn verify_json(text: &str) -> Result<Verified, TenantError> {
    let document: SignedJson = serde_json::from_str(text)
        .map_err(|error| unsigned(format!("it has not the form of a certificate: {error}")))?;
    if document.signature.algorithm != "Ed25519" {
        let algorithm = &document.signature.algorithm;
        return Err(unsigned(format!(
            "it is signed with `{algorithm}`, which is not known"
        )));
    }
    let certificate = document.certificate;
    let SignatureText { key, value, .. } = document.signature;
    holds(&key, &value, &certificate.canonical())?;
    Ok(Verified {
        form: "json",
        key,
        certificate: Some(certificate),
    })
}

fn verify_html(text: &str) -> Result<Verified, TenantError> {
    let (signed, line) = text
        .rfind(MARK)
        .and_then(|at| text.split_at_checked(at))
        .ok_or_else(|| unsigned("it carries no signature"))?;
    let words = line
        .strip_prefix(MARK)
        .and_then(|line| line.strip_suffix(MARK_END))
        .and_then(|line| line.split_once(' '))
        .ok_or_else(|| unsigned("its last line is not its signature"))?;
    holds(words.0, words.1, signed.as_bytes())?;
    Ok(Verified {
        form: "html",
        key: words.0.to_owned(),
        certificate: None,
    })
}

fn holds(key: &str, value: &str, message: &[u8]) -> Result<(), TenantError> {
    let bytes = |text: &str, what: &str| {
        hex::decode(text).map_err(|_| unsigned(format!("its {what} is not hexadecimal")))
    };
    let signature = Signature {
        key: bytes(key, "key")?,
        value: bytes(value, "signature")?,
    };
    match signature.is_of(message) {
        true => Ok(()),
        false => Err(unsigned("it was changed after it was signed")),
    }
}

/// Which repository of this installation signs with a key, if one does.
///
/// # Errors
/// When a repository cannot be opened.
pub async fn signer(installation: &Installation, key: &str) -> Result<Option<String>, TenantError> {
    let (installation, key) = (installation.clone(), key.to_owned());
    blocking("open the repositories", move || {
        for (name, repository) in installation.all_repositories()? {
            let own = repository
                .public_key()
                .map_err(|source| TenantError::Store {
                    action: format!("asking repository {name} for its public key"),
                    source,
                })?;
            if hex::encode(own) == key {
                return Ok(Some(name.to_string()));
            }
        }
        Ok(None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dr_store::{LocalBackend, Repository, RepositoryKey};

    use super::*;

    fn example() -> Certificate {
        let at = "2026-11-23T14:03:21Z".parse().unwrap();
        Certificate {
            version: CERTIFICATE_VERSION,
            id: "tr-20261123T140321Z-abcd".to_owned(),
            workload: "erp".to_owned(),
            tenant: CertifiedTenant {
                id: "7".to_owned(),
                name: "ACME <Söhne>".to_owned(),
            },
            what: "restore".to_owned(),
            undo_of: None,
            mode: "replace".to_owned(),
            only: Vec::new(),
            target: Some("2026-11-23T14:00:00Z".to_owned()),
            reached: Some(Reached {
                lsn: Some("0/3000028".to_owned()),
                last_commit: Some(at),
            }),
            by: Some("anna".to_owned()),
            host: Some("db1".to_owned()),
            started: at,
            finished: at,
            transaction: Some("4711".to_owned()),
            undo_point: Some("erp-1".to_owned()),
            tables: vec![CertifiedTable {
                table: "public.sales_order".to_owned(),
                inserted: 120,
                updated: 3,
                deleted: 0,
                rows: Some(123),
                sha256: Some("00ff".to_owned()),
            }],
            folders: Vec::new(),
            erasures: Some(vec![CertifiedErasure {
                id: "er-20261122T140321Z-abcd".to_owned(),
                recorded: at,
                rows: 2,
            }]),
            verdict: Verdict::Proved,
            proof: vec![CertifiedProof {
                what: "the rows are as they were".to_owned(),
                holds: Some(true),
                detail: "123 rows".to_owned(),
            }],
            notes: Vec::new(),
            program: "dr 0.1.0".to_owned(),
        }
    }

    fn certified() -> Certified {
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(&folder.path().join("repository")));
        let repository = Repository::create(backend, &RepositoryKey::generate()).unwrap();
        signed(example(), |document| Ok(repository.sign(document).unwrap())).unwrap()
    }

    #[test]
    fn a_certificate_holds_in_both_forms() {
        let made = certified();
        for (document, form) in [(&made.json, "json"), (&made.html, "html")] {
            let verified = verify(document).unwrap();
            assert_eq!(verified.form, form);
            assert_eq!(verified.key.len(), 64);
        }
        assert_eq!(verify(&made.json).unwrap().certificate, Some(example()));
    }

    #[test]
    fn a_changed_count_date_or_tenant_is_found() {
        let made = certified();
        let changes = [
            ("120", "121"),
            ("2026-11-23", "2026-11-24"),
            ("ACME", "ACNE"),
            ("00ff", "00fe"),
        ];
        for document in [made.json, made.html] {
            let text = String::from_utf8(document).unwrap();
            for (from, to) in changes {
                assert!(text.contains(from), "{from}");
                let changed = text.replace(from, to);
                let error = verify(changed.as_bytes()).unwrap_err().to_string();
                assert!(error.contains("changed after it was signed"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_added_is_found() {
        let made = certified();
        let json = String::from_utf8(made.json).unwrap();
        let added = [
            json.replace("\"tables\": [", "\"approved\": true, \"tables\": ["),
            json.replace("\"inserted\": 120", "\"inserted\": 120, \"lost\": 0"),
            json.replace("Ed25519", "none"),
            // Readers differ in which of two they take.
            json.replace(
                "\"workload\": \"erp\"",
                "\"workload\": \"hr\", \"workload\": \"erp\"",
            ),
        ];
        let html = String::from_utf8(made.html).unwrap();
        let more = [
            format!("{html}<p>approved</p>"),
            html.replace("</body>", "<p>approved</p></body>"),
            format!("<p>approved</p>{html}"),
            "<html>nothing</html>".to_owned(),
        ];
        for document in added.iter().chain(&more) {
            assert!(verify(document.as_bytes()).is_err(), "{document}");
        }
    }

    /// The canonical form by the rules of RFC 8785, written out by hand.
    #[test]
    fn the_canonical_form_is_written_out() {
        let canonical = String::from_utf8(example().canonical()).unwrap();
        assert!(
            canonical.starts_with(
                "{\"by\":\"anna\",\"erasures\":[{\"id\":\"er-20261122T140321Z-abcd\",\"recorded\":\"2026-11-23T14:03:21Z\",\"rows\":2}],\"finished\":\"2026-11-23T14:03:21Z\",\"folders\":[],"
            )
        );
        // Of a report that says nothing of erasures, the certificate is what it always was.
        let former = Certificate {
            erasures: None,
            ..example()
        };
        let former = String::from_utf8(former.canonical()).unwrap();
        assert!(
            former.starts_with(
                "{\"by\":\"anna\",\"finished\":\"2026-11-23T14:03:21Z\",\"folders\":[],"
            )
        );
        assert!(canonical.contains(
            "\"tables\":[{\"deleted\":0,\"inserted\":120,\"rows\":123,\"sha256\":\"00ff\",\"table\":\"public.sales_order\",\"updated\":3}]"
        ));
        assert!(canonical.ends_with(
            "\"verdict\":\"proved\",\"version\":1,\"what\":\"restore\",\"workload\":\"erp\"}"
        ));
    }
}
