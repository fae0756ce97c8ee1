//! AES-256-GCM with counted nonces over the frames of one object.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{CryptoFailed, KEY_ID_BYTES};

/// Bytes that sealing adds to a frame.
pub(crate) const TAG_BYTES: usize = 16;

/// Where a frame belongs. Everything here is authenticated with it, so that a frame opens nowhere
/// else: not in another repository, object, place or role.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameContext<'a> {
    pub(crate) repository: &'a [u8; 16],
    pub(crate) version: u8,
    pub(crate) kind: u8,
    pub(crate) key_id: &'a [u8; KEY_ID_BYTES],
    /// The object's name.
    pub(crate) object: &'a str,
    /// The frame's number within the object; also its nonce.
    pub(crate) frame: u64,
    /// Where the frame begins within the object.
    pub(crate) offset: u64,
    /// What else the frame is bound to: a chunk's name, a header.
    pub(crate) bound_to: &'a [u8],
}

impl FrameContext<'_> {
    fn associated_data(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(96 + self.object.len() + self.bound_to.len());
        data.extend_from_slice(b"dr-store");
        data.push(self.version);
        data.push(self.kind);
        data.extend_from_slice(self.repository);
        data.extend_from_slice(self.key_id);
        data.extend_from_slice(&self.frame.to_le_bytes());
        data.extend_from_slice(&self.offset.to_le_bytes());
        data.extend_from_slice(&(self.object.len() as u64).to_le_bytes());
        data.extend_from_slice(self.object.as_bytes());
        data.extend_from_slice(&(self.bound_to.len() as u64).to_le_bytes());
        data.extend_from_slice(self.bound_to);
        data
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0u8; 12];
        for (to, from) in nonce.iter_mut().skip(4).zip(self.frame.to_be_bytes()) {
            *to = from;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals and opens the frames of one object.
#[derive(Debug)]
pub(crate) struct ObjectSeal(LessSafeKey);

impl ObjectSeal {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, CryptoFailed> {
        UnboundKey::new(&AES_256_GCM, key)
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| CryptoFailed)
    }

    /// Replaces `frame` by its sealed form.
    pub(crate) fn seal(
        &self,
        context: &FrameContext<'_>,
        frame: &mut Vec<u8>,
    ) -> Result<(), CryptoFailed> {
        self.0
            .seal_in_place_append_tag(context.nonce(), Aad::from(context.associated_data()), frame)
            .map_err(|_| CryptoFailed)
    }

    /// Replaces a sealed frame by what was sealed; an error is a changed or misplaced frame.
    pub(crate) fn open(
        &self,
        context: &FrameContext<'_>,
        mut frame: Vec<u8>,
    ) -> Result<Vec<u8>, CryptoFailed> {
        self.open_in_place(context, &mut frame)?;
        Ok(frame)
    }

    /// As [`Self::open`]; where it fails, what is in `frame` is nothing.
    pub(crate) fn open_in_place(
        &self,
        context: &FrameContext<'_>,
        frame: &mut Vec<u8>,
    ) -> Result<(), CryptoFailed> {
        let length = self
            .0
            .open_in_place(context.nonce(), Aad::from(context.associated_data()), frame)
            .map_err(|_| CryptoFailed)?
            .len();
        frame.truncate(length);
        Ok(())
    }
}
