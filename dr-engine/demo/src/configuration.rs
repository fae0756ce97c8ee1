//! The folder of configuration that each tenant of the demo's ERP has, named by its code.
//!
//! It has one of everything a copy can get wrong: a file in a sub-folder, a binary one, an empty
//! folder, a symbolic link, an executable, modes that differ.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use dr_sources::instance::{RunAs, give};

use crate::DemoError;

/// Writes one folder for each of `tenants` (id and code) below `folder`, which is made if it does not
/// exist. Everything made belongs to `run_as`. The same codes give the same content.
///
/// # Errors
/// [`DemoError::Write`] naming the file; a tenant's folder that exists already is an error too.
pub fn write_configuration(
    folder: &Path,
    tenants: &[(String, String)],
    run_as: Option<&RunAs>,
) -> Result<(), DemoError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoError::Write { path, source }
    };
    let own = |path: &Path| give(path, run_as).map_err(DemoError::Instance);
    if !folder.exists() {
        fs::create_dir_all(folder).map_err(failed(folder))?;
        own(folder)?;
    }
    for (_, code) in tenants {
        let tenant = folder.join(code);
        for part in ["", "edi", "edi/archive", "price-rules", "hooks"] {
            let path = tenant.join(part);
            fs::create_dir(&path).map_err(failed(&path))?;
            own(&path)?;
        }
        for (name, mode, content) in files_of(code) {
            let path = tenant.join(name);
            write(&path, mode, &content).map_err(failed(&path))?;
            own(&path)?;
        }
        let link = tenant.join("price-rules/current.yaml");
        symlink("standard.yaml", &link).map_err(failed(&link))?;
        own(&link)?;
    }
    Ok(())
}

fn write(path: &Path, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    // The mode given at creation is cut by the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

fn files_of(code: &str) -> Vec<(&'static str, u32, Vec<u8>)> {
    let number = number_of(code);
    let lower = code.to_lowercase();
    let settings = format!(
        "tenant: {code}\nlocale: en-US\ninvoicing:\n  terms_days: {}\n  email: billing@{lower}.example\n\
         warehouse:\n  pick_strategy: {}\n  cutoff: \"{}:30\"\n",
        14 + number % 4 * 15,
        if number.is_multiple_of(2) {
            "fifo"
        } else {
            "zone"
        },
        14 + number % 5,
    );
    let mut partners = String::from("partners:\n");
    for partner in 0..2 + number % 4 {
        partners.push_str(&format!(
            "  - id: \"{:013}\"\n    name: Partner {partner} of {code}\n    messages: [ORDERS, DESADV, INVOIC]\n",
            (number.wrapping_mul(7919) + partner * 104_729) % 10_000_000_000_000,
        ));
    }
    let rules = |list: &str, discounts: &[u64]| {
        let mut text = format!("list: {list}\nrules:\n");
        for (step, discount) in discounts.iter().enumerate() {
            let quantity = 10_u64 * 5_u64.pow(u32::try_from(step).unwrap_or(0));
            text.push_str(&format!(
                "  - {{ from_quantity: {quantity}, discount_percent: {discount} }}\n"
            ));
        }
        text.into_bytes()
    };
    let hook = format!(
        "#!/bin/sh\n# runs after an order of {code} is taken\nlogger -t erp \"order $1 for {lower}\"\n"
    );
    vec![
        ("settings.yaml", 0o644, settings.into_bytes()),
        ("edi/partners.yaml", 0o640, partners.into_bytes()),
        (
            "price-rules/standard.yaml",
            0o644,
            rules("standard", &[number % 3, 5, 9]),
        ),
        (
            "price-rules/volume.yaml",
            0o644,
            rules("volume", &[2, 6 + number % 3, 12, 15]),
        ),
        ("logo.bin", 0o600, logo(number)),
        ("hooks/after-order.sh", 0o755, hook.into_bytes()),
    ]
}

/// FNV-1a: a tenant's own number, the same on every machine.
fn number_of(code: &str) -> u64 {
    code.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) % 1_000_000_007
}

/// Some KiB of bytes that are no text, begun as a PNG begins.
fn logo(number: u64) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut state = number | 1;
    for _ in 0..256 + number % 700 {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
