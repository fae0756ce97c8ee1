//! Keys and sealing. Key material never leaves this module: others hold [`Keys`] and ask.
//!
//! The hierarchy: the operator's [`RepositoryKey`] leads to the secret of a key slot, which wraps the
//! repository's master key; the master key opens the data keys of workloads and of tenants. From each key, HKDF-SHA-256 derives
//! one key for each use. Every stored object is sealed with a key of its own, derived with the
//! object's random 32-byte salt, so that nonces need only count the frames within the object
//! (SP 800-38D section 8.3 limits random nonces, not counted ones).
//!
//! AES-256-GCM does not commit to its key: a ciphertext can be made that opens under two keys. So a
//! key slot carries a commitment to the key that opens it, and every object names its key by an id
//! derived from it.

mod command;
mod key_text;
mod opener;
mod passphrase;
mod recovery;
mod seal;
mod sign;

pub use command::KeyCommand;
pub(crate) use command::WRAPPED_BYTES_MAX;
pub use opener::{NewSlot, RepositoryKey, SlotKind, new_age_identity};
pub(crate) use opener::{SlotData, SlotRefused};
pub(crate) use passphrase::Stretching;
pub(crate) use seal::{FrameContext, ObjectSeal, TAG_BYTES};
pub use sign::Signature;

use aws_lc_rs::{constant_time, digest, hkdf, hmac};
use zeroize::Zeroizing;

/// Bytes of every secret.
pub(crate) const SECRET_BYTES: usize = 32;
/// Bytes of the salt of an object.
pub(crate) const SALT_BYTES: usize = 32;
/// Bytes of a key's id.
pub(crate) const KEY_ID_BYTES: usize = 16;

/// Bytes of the code that stands for a tenant's name.
pub(crate) const TENANT_CODE_BYTES: usize = 16;

/// A secret that is wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// A failure of the cryptographic library that has no cause an operator could mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library refused the operation")]
pub(crate) struct CryptoFailed;

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA-256 (RFC 5869): `length` bytes for one use, named by `info`.
fn derive<const N: usize>(
    secret: &[u8],
    salt: &[u8],
    info: &[&[u8]],
) -> Result<Zeroizing<[u8; N]>, CryptoFailed> {
    let mut out = Zeroizing::new([0u8; N]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(info, Length(N))
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .map_err(|_| CryptoFailed)?;
    Ok(out)
}

pub(crate) fn random_secret() -> Secret {
    let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
    dr_model::random::fill(secret.as_mut_slice());
    secret
}

pub(crate) fn random_salt() -> [u8; SALT_BYTES] {
    let mut salt = [0u8; SALT_BYTES];
    dr_model::random::fill(&mut salt);
    salt
}

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    // SHA-256 is 32 bytes; zip cannot run short.
    for (to, from) in out
        .iter_mut()
        .zip(digest::digest(&digest::SHA256, data).as_ref())
    {
        *to = *from;
    }
    out
}

fn tag32(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0u8; 32];
    for (to, from) in out.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    out
}

/// What a key slot holds in the clear so that exactly one key opens it.
pub(crate) fn commitment(secret: &[u8], salt: &[u8; SALT_BYTES]) -> Result<[u8; 32], CryptoFailed> {
    derive::<32>(secret, salt, &[b"dr-store/1 commitment"]).map(|value| *value)
}

pub(crate) fn equal(left: &[u8], right: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// One key of the hierarchy (master or a workload's) and everything derived from it.
#[derive(Clone)]
pub(crate) struct Keys {
    secret: Secret,
    id: [u8; KEY_ID_BYTES],
    naming: hmac::Key,
    wal_mac: hmac::Key,
    cutting_seed: u64,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("id", &hex::encode(self.id))
            .finish_non_exhaustive()
    }
}

impl Keys {
    pub(crate) fn new(secret: Secret) -> Result<Self, CryptoFailed> {
        let secret_bytes = secret.as_slice();
        let part = |info: &'static [u8]| derive::<32>(secret_bytes, &[], &[info]);
        let id = *derive::<KEY_ID_BYTES>(secret_bytes, &[], &[b"dr-store/1 key id"])?;
        let naming = hmac::Key::new(
            hmac::HMAC_SHA256,
            part(b"dr-store/1 chunk name")?.as_slice(),
        );
        let wal_mac = hmac::Key::new(hmac::HMAC_SHA256, part(b"dr-store/1 wal mac")?.as_slice());
        let seed = derive::<8>(secret_bytes, &[], &[b"dr-store/1 cutting"])?;
        Ok(Self {
            id,
            naming,
            wal_mac,
            cutting_seed: u64::from_le_bytes(*seed),
            secret,
        })
    }

    /// Names the key without telling it.
    pub(crate) fn id(&self) -> [u8; KEY_ID_BYTES] {
        self.id
    }

    /// The bytes to be wrapped under another key.
    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The name of a chunk: keyed, so that a name confirms nothing to who lacks the key.
    pub(crate) fn chunk_name(&self, plaintext: &[u8]) -> [u8; 32] {
        tag32(&self.naming, &[plaintext])
    }

    /// The code that tells whether a WAL file was pushed with this content.
    pub(crate) fn wal_mac(&self, name: &str, plaintext: &[u8]) -> [u8; 32] {
        tag32(&self.wal_mac, &[name.as_bytes(), &[0], plaintext])
    }

    /// The code a tenant's key lies under: keyed, so that it tells nobody else which tenant. The
    /// generation counts how often the tenant's key was destroyed.
    pub(crate) fn tenant_code(
        &self,
        workload: &str,
        tenant: &str,
        generation: u64,
    ) -> Result<[u8; TENANT_CODE_BYTES], CryptoFailed> {
        let key = derive::<32>(self.secret.as_slice(), &[], &[b"dr-store/1 tenant name"])?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_slice());
        let tag = tag32(
            &key,
            &[
                &generation.to_le_bytes(),
                workload.as_bytes(),
                &[0],
                tenant.as_bytes(),
            ],
        );
        let mut code = [0u8; TENANT_CODE_BYTES];
        for (to, from) in code.iter_mut().zip(tag) {
            *to = from;
        }
        Ok(code)
    }

    /// Shifts where content is cut, so that chunk lengths do not tell known files apart.
    pub(crate) fn cutting_seed(&self) -> u64 {
        self.cutting_seed
    }

    /// The key of one object.
    pub(crate) fn object_seal(
        &self,
        kind: u8,
        salt: &[u8; SALT_BYTES],
    ) -> Result<ObjectSeal, CryptoFailed> {
        let info: [&[u8]; 2] = [b"dr-store/1 object ", &[kind]];
        let key = derive::<32>(self.secret.as_slice(), salt, &info)?;
        ObjectSeal::new(&key)
    }
}
