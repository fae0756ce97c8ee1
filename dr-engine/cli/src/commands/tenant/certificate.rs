//! `dr tenant certificate` and `dr tenant verify-certificate`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use dr_model::TenantRestoreId;

use crate::context::Context;
use crate::failure::{FAILED, Failure, USAGE};
use crate::output;

pub(crate) async fn make(
    context: &Context,
    id: &TenantRestoreId,
    out: &Path,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let made = dr_tenant::certificate(&installation, id).await?;
    let files = [("json", &made.json), ("html", &made.html)];
    let mut paths = Vec::new();
    for (form, body) in files {
        let path = out.join(format!("{id}.{form}"));
        write(&path, body)?;
        paths.push(path);
    }
    if context.json {
        output::json(&serde_json::json!({ "files": paths, "certificate": made.certificate }))?;
        return Ok(0);
    }
    for path in &paths {
        output::data(&path.display().to_string());
    }
    Ok(0)
}

/// A file that is there already stays, unless it is the same.
fn write(path: &PathBuf, body: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let hint = "--out names another folder, which has to be there";
        Failure::plain(
            FAILED,
            format!("cannot write {}: {error}", path.display()),
            Some(hint),
        )
    };
    if std::fs::read(path).is_ok_and(|there| there == body) {
        return Ok(());
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    let written = file.write_all(body).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a certificate is none.
        let _ = std::fs::remove_file(path);
    }
    written.map_err(failed)
}

pub(crate) async fn verify(
    context: &Context,
    file: &Path,
    key: Option<&str>,
) -> Result<u8, Failure> {
    let document = std::fs::read(file).map_err(|error| {
        Failure::plain(
            USAGE,
            format!("cannot read {}: {error}", file.display()),
            None,
        )
    })?;
    let verified = dr_tenant::verify(&document)?;
    let signer = match key {
        Some(key) if key.eq_ignore_ascii_case(&verified.key) => "the given key".to_owned(),
        Some(_) => {
            return Err(strange(
                &verified.key,
                "it is not signed under the given key",
            ));
        }
        None => {
            let installation = context.installation()?;
            match dr_tenant::signer(&installation, &verified.key).await? {
                Some(repository) => format!("repository `{repository}`"),
                None => {
                    let why = "no repository of this configuration signs with its key";
                    return Err(strange(&verified.key, why));
                }
            }
        }
    };
    if context.json {
        output::json(&serde_json::json!({ "signer": signer, "verified": verified }))?;
        return Ok(0);
    }
    output::data(&format!(
        "genuine: not changed since it was signed by {signer} ({})",
        verified.key
    ));
    if let Some(certificate) = &verified.certificate {
        let rows: u64 = certificate
            .tables
            .iter()
            .map(|table| table.inserted + table.updated + table.deleted)
            .sum();
        output::data(&format!(
            "{}: {} of {} of workload {}, {rows} rows written, finished {}",
            certificate.id,
            certificate.what,
            certificate.tenant.name,
            certificate.workload,
            certificate.finished.format("%Y-%m-%dT%H:%M:%SZ")
        ));
        output::data(&format!("  it says: {}", certificate.verdict));
    }
    Ok(0)
}

fn strange(key: &str, why: &str) -> Failure {
    Failure::plain(
        FAILED,
        format!("the certificate is not genuine: {why} (it names {key})"),
        Some("whoever made it can tell the key by another way; give it with --key"),
    )
}
