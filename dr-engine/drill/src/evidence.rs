//! What can be looked up afterwards: every file with its SHA-256, chained, in the evidence folder and
//! as records of the parent's repository.

use std::path::{Path, PathBuf};

use dr_report::{Evidence, EvidenceFile, ToolVersion};
use dr_store::Repository;
use sha2::{Digest, Sha256};

use crate::DrillError;
use crate::probe::hex;

/// A piece of evidence on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) body: Vec<u8>,
}

/// Evidence that is being collected.
#[derive(Debug, Default)]
pub(crate) struct Collection {
    pieces: Vec<Piece>,
}

impl Collection {
    pub(crate) fn add(&mut self, name: &str, body: impl Into<Vec<u8>>) {
        self.pieces.push(Piece {
            name: name.to_owned(),
            body: body.into(),
        });
    }

    /// A file that may be missing when the run ended early.
    pub(crate) fn add_file(&mut self, name: &str, path: &Path) {
        if let Ok(body) = std::fs::read(path) {
            self.add(name, body);
        }
    }

    /// The manifest of what was collected.
    pub(crate) fn manifest(&self, run: &str, tools: Vec<ToolVersion>) -> Evidence {
        let mut chain = [0_u8; 32];
        let files = self
            .pieces
            .iter()
            .map(|piece| {
                let digest: [u8; 32] = Sha256::digest(&piece.body).into();
                chain = Sha256::digest([chain, digest].concat()).into();
                EvidenceFile {
                    name: piece.name.clone(),
                    bytes: piece.body.len() as u64,
                    sha256: hex(&digest),
                    record: Some(format!("evidence/{run}/{}", piece.name)),
                }
            })
            .collect();
        Evidence {
            files,
            tools,
            chain_sha256: Some(hex(&chain)),
            signature: None,
            retention: None,
        }
    }

    /// Writes all pieces into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), DrillError> {
        std::fs::create_dir_all(folder).map_err(DrillError::file("create", folder))?;
        for piece in &self.pieces {
            let path = folder.join(&piece.name);
            std::fs::write(&path, &piece.body).map_err(DrillError::file("write", &path))?;
        }
        Ok(())
    }

    /// Keeps all pieces in the repository. Blocks.
    pub(crate) fn keep(&self, run: &str, repository: &Repository) -> Result<(), DrillError> {
        for piece in &self.pieces {
            repository
                .put_record("evidence", &format!("{run}/{}", piece.name), &piece.body)
                .map_err(|source| DrillError::Repository {
                    action: "keep evidence",
                    source,
                })?;
        }
        Ok(())
    }
}

/// SHA-256 of a file, if it can be read.
pub(crate) fn sha256_of(path: &Path) -> Option<String> {
    std::fs::read(path)
        .ok()
        .map(|body| hex(&Sha256::digest(&body)))
}

/// The programs that took part.
pub(crate) fn tools(dr_binary: &Path, bin_directory: Option<PathBuf>) -> Vec<ToolVersion> {
    let version = |program: &Path| {
        let said = std::process::Command::new(program)
            .arg("--version")
            .output();
        said.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let mut programs = vec![("dr", dr_binary.to_owned())];
    if let Some(folder) = bin_directory {
        programs.push(("postgres", folder.join("postgres")));
    }
    let nats = Path::new("/usr/sbin/nats-server");
    if nats.exists() {
        programs.push(("nats-server", nats.to_owned()));
    }
    programs
        .into_iter()
        .map(|(tool, path)| ToolVersion {
            tool: tool.to_owned(),
            version: version(&path),
            sha256: sha256_of(&path),
        })
        .collect()
}
