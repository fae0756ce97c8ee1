//! A data key: the body of `keys/workload/<workload>` and `keys/tenant/<workload>/<code>`, sealed
//! under the master key.
//!
//! ```text
//!  0 32  the key
//! 32  …  of a tenant's key: the tenant's name (length 4, UTF-8); of a workload's key: nothing
//! ```
//!
//! The tenant's name is sealed with the key, because the object's own name does not tell it.

use zeroize::Zeroizing;

use super::FormatError;
use super::bytes::{Fields, put_text};
use super::key_slot::secret_of;
use crate::crypto::{SECRET_BYTES, Secret};

pub(crate) fn encode(secret: &Secret, tenant: Option<&str>) -> Zeroizing<Vec<u8>> {
    let name_bytes = tenant.map_or(0, |name| 4 + name.len());
    // All its room at once, so that growing leaves no copy of the key behind.
    let mut body = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + name_bytes));
    body.extend_from_slice(secret.as_slice());
    if let Some(name) = tenant {
        put_text(&mut body, name);
    }
    body
}

/// The key and the tenant it belongs to; `None` for the workload itself.
pub(crate) fn decode(body: &[u8]) -> Result<(Secret, Option<String>), FormatError> {
    let mut fields = Fields::of(body);
    let secret = secret_of(fields.take(SECRET_BYTES)?)?;
    let tenant = if fields.is_empty() {
        None
    } else {
        Some(fields.text()?)
    };
    fields.end()?;
    Ok((secret, tenant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn a_data_key_keeps_its_tenant_and_refuses_another_length() {
        let secret = random_secret();
        for tenant in [None, Some("acme"), Some("Größe & Söhne")] {
            let body = encode(&secret, tenant);
            let (read, owner) = decode(&body).unwrap();
            assert_eq!((read, owner.as_deref()), (secret.clone(), tenant));
            for length in 0..body.len() {
                // The first 32 bytes alone are what a workload's key looks like.
                assert!(
                    length == SECRET_BYTES || decode(&body[..length]).is_err(),
                    "{length}"
                );
            }
            assert!(decode(&[body.as_slice(), b"x"].concat()).is_err());
        }
    }
}
