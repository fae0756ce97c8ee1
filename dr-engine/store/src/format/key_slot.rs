//! A key slot, `keys/slot/<slot>`: the master key, wrapped under a secret of the slot's own.
//!
//! ```text
//!       0 64  header; its key id is the master key's
//!      64  1  kind: 1 key file, 2 passphrase, 3 age recipient, 4 outside command
//!      65  3  zero
//!      68  4  n
//!      72  n  what the opener needs to come to the secret, by kind
//!    72+n 32  commitment to the secret
//!   104+n 48  frame 0 under the secret, bound to all before it: the master key
//!   152+n  4  m
//!   156+n  m  frame 1 under the master key, bound to all before it: when it was made, its label
//! 156+n+m 32  SHA-256 of all before it: tells a damaged slot from a wrong key
//! ```
//!
//! The commitment is there because AES-256-GCM does not commit to its key: without it a slot could be
//! made that opens under two secrets. Frame 1 can be checked by whoever opened any other slot, so a
//! slot that was made without the master key is found.

use chrono::{DateTime, Utc};
use zeroize::Zeroizing;

use super::bytes::{Fields, put_text};
use super::header::{HEADER_BYTES, Header, Kind};
use super::{FormatError, RepositoryId, VERSION};
use crate::crypto::{
    CryptoFailed, FrameContext, KEY_ID_BYTES, Keys, SECRET_BYTES, Secret, SlotData, SlotKind,
    Stretching, TAG_BYTES, WRAPPED_BYTES_MAX, commitment, equal, sha256,
};

/// No slot is larger: what is, is not read.
pub(crate) const SLOT_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a label.
pub(crate) const LABEL_CHARS_MAX: usize = 200;
/// Header, kind and length of the opener's data.
const HEAD_BYTES: usize = HEADER_BYTES + 8;
const COMMITMENT_BYTES: usize = 32;
const MASTER_FRAME_BYTES: usize = SECRET_BYTES + TAG_BYTES;

/// What a slot says of itself to who has the master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotNote {
    pub(crate) made: DateTime<Utc>,
    pub(crate) label: String,
}

/// A slot taken apart, its checksum compared; nothing of it opened yet.
#[derive(Debug)]
pub(crate) struct ReadSlot<'a> {
    header: Header,
    pub(crate) data: SlotData,
    commitment: &'a [u8],
    bound_to_master: &'a [u8],
    master_frame: &'a [u8],
    bound_to_note: &'a [u8],
    note_frame: &'a [u8],
}

fn frame_context<'a>(
    repository: &'a RepositoryId,
    header: &'a Header,
    object: &'a str,
    frame: u64,
    bound_to: &'a [u8],
) -> FrameContext<'a> {
    FrameContext {
        repository,
        version: VERSION,
        kind: Kind::KeySlot as u8,
        key_id: &header.key_id,
        object,
        frame,
        offset: bound_to.len() as u64,
        bound_to,
    }
}

fn encode_data(data: &SlotData) -> Vec<u8> {
    let mut out = Vec::new();
    match data {
        SlotData::KeyFile => {}
        SlotData::Passphrase(stretching) => {
            for number in [stretching.memory_kib, stretching.passes, stretching.lanes] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&stretching.salt);
        }
        SlotData::AgeRecipient { recipient, sealed } => {
            put_text(&mut out, recipient);
            out.extend_from_slice(sealed);
        }
        SlotData::Command { wrapped } => out.extend_from_slice(wrapped),
    }
    out
}

fn decode_data(kind: u8, data: &[u8]) -> Result<SlotData, FormatError> {
    let mut fields = Fields::of(data);
    match kind {
        1 => {
            fields.end()?;
            Ok(SlotData::KeyFile)
        }
        2 => {
            let stretching = Stretching {
                memory_kib: fields.u32()?,
                passes: fields.u32()?,
                lanes: fields.u32()?,
                salt: fields.array()?,
            };
            fields.end()?;
            if stretching.is_bearable() {
                Ok(SlotData::Passphrase(stretching))
            } else {
                Err(FormatError::damaged(
                    "it asks for more (or less) memory or time than a slot may",
                ))
            }
        }
        3 => Ok(SlotData::AgeRecipient {
            recipient: fields.text()?,
            sealed: fields.rest().to_vec(),
        }),
        4 if data.len() <= WRAPPED_BYTES_MAX => Ok(SlotData::Command {
            wrapped: data.to_vec(),
        }),
        _ => Err(FormatError::damaged("it is of a kind that is not known")),
    }
}

/// Makes a slot for the secret that `data` leads to.
pub(crate) fn encode(
    repository: &RepositoryId,
    object: &str,
    (data, secret): (&SlotData, &Secret),
    master: &Keys,
    note: &SlotNote,
) -> Result<Vec<u8>, CryptoFailed> {
    let kind = Kind::KeySlot as u8;
    let header = Header::new(Kind::KeySlot, master);
    let mut out = header.encode();
    out.extend_from_slice(&[data.kind() as u8, 0, 0, 0]);
    let data = encode_data(data);
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&data);
    out.extend_from_slice(&commitment(secret.as_slice(), &header.salt)?);
    let mut frame = Vec::with_capacity(MASTER_FRAME_BYTES);
    frame.extend_from_slice(master.secret().as_slice());
    Keys::new(secret.clone())?
        .object_seal(kind, &header.salt)?
        .seal(
            &frame_context(repository, &header, object, 0, &out),
            &mut frame,
        )?;
    out.extend_from_slice(&frame);
    let mut body = note.made.timestamp_micros().to_le_bytes().to_vec();
    put_text(&mut body, &note.label);
    let length = u32::try_from(body.len() + TAG_BYTES).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    master.object_seal(kind, &header.salt)?.seal(
        &frame_context(repository, &header, object, 1, &out),
        &mut body,
    )?;
    out.extend_from_slice(&body);
    out.extend_from_slice(&sha256(&out));
    Ok(out)
}

fn length_of(fields: &mut Fields<'_>) -> Result<usize, FormatError> {
    Ok(usize::try_from(fields.u32()?).unwrap_or(usize::MAX))
}

impl<'a> ReadSlot<'a> {
    /// Takes a slot apart. What fails here is damage, whatever key is at hand.
    pub(crate) fn of(object: &'a [u8]) -> Result<Self, FormatError> {
        let (checked, sum) = object
            .len()
            .checked_sub(32)
            .and_then(|length| object.split_at_checked(length))
            .ok_or_else(|| FormatError::damaged("it is cut short"))?;
        // The header first: another version's slot is no damage.
        let header = Header::decode(checked, Kind::KeySlot, None)?;
        if sha256(checked) != *sum {
            return Err(FormatError::damaged("its checksum does not fit"));
        }
        let mut fields = Fields::of(checked);
        fields.take(HEADER_BYTES)?;
        let kind = fields.u8()?;
        if fields.array::<3>()? != [0; 3] {
            return Err(FormatError::damaged("its head was changed"));
        }
        let length = length_of(&mut fields)?;
        let data = decode_data(kind, fields.take(length)?)?;
        let commitment = fields.take(COMMITMENT_BYTES)?;
        let until_master = HEAD_BYTES + length + COMMITMENT_BYTES;
        let bound_to_master = checked.get(..until_master).unwrap_or_default();
        let master_frame = fields.take(MASTER_FRAME_BYTES)?;
        let note_length = length_of(&mut fields)?;
        let until_note = until_master + MASTER_FRAME_BYTES + 4;
        let bound_to_note = checked.get(..until_note).unwrap_or_default();
        let note_frame = fields.take(note_length)?;
        fields.end()?;
        Ok(Self {
            header,
            data,
            commitment,
            bound_to_master,
            master_frame,
            bound_to_note,
            note_frame,
        })
    }

    /// How it is opened.
    pub(crate) fn kind(&self) -> SlotKind {
        self.data.kind()
    }

    /// The id of the master key in it, as it says itself.
    pub(crate) fn master_id(&self) -> [u8; KEY_ID_BYTES] {
        self.header.key_id
    }

    /// The master key; `None` when the slot was made for another secret.
    pub(crate) fn open(
        &self,
        repository: &RepositoryId,
        object: &str,
        secret: &Secret,
    ) -> Result<Option<Keys>, FormatError> {
        if !equal(
            self.commitment,
            &commitment(secret.as_slice(), &self.header.salt)?,
        ) {
            return Ok(None);
        }
        let context = frame_context(repository, &self.header, object, 0, self.bound_to_master);
        let opened = Keys::new(secret.clone())?
            .object_seal(Kind::KeySlot as u8, &self.header.salt)?
            .open(&context, self.master_frame.to_vec())
            .map(Zeroizing::new)?;
        let master = Keys::new(secret_of(&opened)?)?;
        if master.id() != self.header.key_id {
            return Err(FormatError::damaged("it holds another key than it names"));
        }
        self.note(repository, object, &master)?;
        Ok(Some(master))
    }

    /// What the slot says of itself, and proof that it was made by somebody who had the master key.
    pub(crate) fn note(
        &self,
        repository: &RepositoryId,
        object: &str,
        master: &Keys,
    ) -> Result<SlotNote, FormatError> {
        if self.header.key_id != master.id() {
            return Err(FormatError::damaged("it holds the key of something else"));
        }
        let context = frame_context(repository, &self.header, object, 1, self.bound_to_note);
        let body = master
            .object_seal(Kind::KeySlot as u8, &self.header.salt)?
            .open(&context, self.note_frame.to_vec())?;
        let mut fields = Fields::of(&body);
        let made = DateTime::from_timestamp_micros(fields.i64()?)
            .ok_or_else(|| FormatError::damaged("the time in it is none"))?;
        let label = fields.text()?;
        fields.end()?;
        Ok(SlotNote { made, label })
    }
}

/// A secret from decoded bytes.
pub(crate) fn secret_of(bytes: &[u8]) -> Result<Secret, FormatError> {
    let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
    if bytes.len() != SECRET_BYTES {
        return Err(FormatError::damaged("the key in it has a wrong length"));
    }
    secret.copy_from_slice(bytes);
    Ok(secret)
}

#[cfg(test)]
mod tests;
