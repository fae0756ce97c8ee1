//! `dr init`.

use dr_config::{KeySource, S3Config};
use dr_installation::{AdoptRequest, AdoptSource, InitRequest};

use crate::args::InitArgs;
use crate::context::{Context, absolute};
use crate::failure::{Failure, USAGE};
use crate::output;

pub(crate) async fn run(context: &Context, arguments: InitArgs) -> Result<u8, Failure> {
    let outcome = if let Some(source) = &arguments.adopt {
        let request = AdoptRequest {
            source: adopt_source(source, &arguments)?,
            key: adopt_key(&arguments)?,
            config: new_config(context)?,
        };
        dr_installation::adopt(&request).await?
    } else {
        let repository = arguments.repository.as_deref().map(absolute).transpose()?;
        let request = InitRequest {
            config: new_config(context)?,
            repository,
            workloads: None,
        };
        dr_installation::init(&request).await?
    };
    if context.json {
        output::json(&serde_json::json!({
            "config": outcome.config, "created": outcome.created, "seen": outcome.seen,
            "keys": outcome.keys,
        }))?;
        return Ok(0);
    }
    if outcome.created.is_empty() {
        output::data(&format!(
            "already initialised: {}",
            outcome.config.display()
        ));
        return Ok(0);
    }
    for line in &outcome.created {
        output::data(&format!("created {line}"));
    }
    for line in &outcome.seen {
        output::data(&format!("the store of {line}"));
    }
    for key in &outcome.keys {
        output::data(&format!(
            "\nKEEP A COPY OF THIS KEY ELSEWHERE, on another machine or on paper:\n  {}\n\
             Without it nothing in the repository can ever be read again.",
            key.display()
        ));
    }
    Ok(0)
}

/// The engine file that is there, else the one to write.
fn new_config(context: &Context) -> Result<std::path::PathBuf, Failure> {
    if let Some(given) = &context.config {
        return absolute(given);
    }
    if let Some(variable) = std::env::var_os("DR_CONFIG") {
        return absolute(std::path::Path::new(&variable));
    }
    absolute(std::path::Path::new("dr.yaml"))
}

/// What opens the adopted repository: the argument parser sees to it that it is one.
fn adopt_key(arguments: &InitArgs) -> Result<KeySource, Failure> {
    let path = |given: &Option<std::path::PathBuf>| given.as_deref().map(absolute).transpose();
    Ok(KeySource {
        file: path(&arguments.key)?,
        age_identity: path(&arguments.age_identity)?,
        passphrase_file: path(&arguments.passphrase_file)?,
        ..KeySource::default()
    })
}

fn adopt_source(text: &str, arguments: &InitArgs) -> Result<AdoptSource, Failure> {
    let Some(rest) = text.strip_prefix("s3://") else {
        return Ok(AdoptSource::Path(absolute(std::path::Path::new(text))?));
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Failure::plain(
            USAGE,
            format!("`{text}` names no bucket"),
            Some("write it as s3://BUCKET/PREFIX"),
        ));
    }
    Ok(AdoptSource::S3(S3Config {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_end_matches('/').to_owned(),
        region: arguments.region.clone(),
        endpoint: arguments.endpoint.clone(),
        ..S3Config::default()
    }))
}
