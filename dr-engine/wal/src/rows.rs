//! What a record does to rows: which are inserted, updated and deleted, and where they are
//! (`access/heapam_xlog.h`).
//!
//! A row is known by its place, block and line: an update leaves the old version where it is and puts the
//! new one elsewhere. A place is given to another row only after the one before was removed for good.
//! What rows hold is told by inserts and updates; by deletes and locks it is not.

use crate::bytes::Fields;
use crate::record::{Fork, Image, Manager, Record, Relation};
use crate::tuple::{LeftOut, Masks, Tuple};

const KIND_MASK: u8 = 0x70;
const INIT_PAGE: u8 = 0x80;
const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
/// Of resource manager Heap2.
const MULTI_INSERT: u8 = 0x50;

/// `XLH_DELETE_IS_SUPER`.
const DELETE_GIVES_UP: u8 = 1 << 3;
/// `XLH_UPDATE_PREFIX_FROM_OLD` and `XLH_UPDATE_SUFFIX_FROM_OLD`.
const UPDATE_PREFIX: u8 = 1 << 5;
const UPDATE_SUFFIX: u8 = 1 << 6;

/// Where a row is in its table's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace {
    /// The block.
    pub block: u32,
    /// The line on it, from 1.
    pub line: u16,
}

/// What is done to one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange<'a> {
    /// It is new.
    Inserted {
        /// Where it is.
        at: RowPlace,
        /// What it holds.
        written: Written<'a>,
    },
    /// It has a new version.
    Updated {
        /// Where the old one is.
        from: RowPlace,
        /// Where the new one is.
        to: RowPlace,
        /// What the new one holds.
        written: Written<'a>,
    },
    /// It is gone.
    Deleted {
        /// Where it was.
        at: RowPlace,
        /// It was inserted just before and given up for a conflict (`ON CONFLICT`): it never was there.
        gives_up: bool,
    },
}

impl<'a> RowChange<'a> {
    /// What the row holds from now on.
    #[must_use]
    pub fn written(&self) -> Option<&Written<'a>> {
        match self {
            Self::Inserted { written, .. } | Self::Updated { written, .. } => Some(written),
            Self::Deleted { .. } => None,
        }
    }
}

/// A row as a record holds it, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<'a> {
    line: u16,
    image: Option<Image<'a>>,
    /// The masks and what follows them, and how much of the values is left out.
    body: Option<(Masks, &'a [u8], LeftOut)>,
}

impl<'a> Written<'a> {
    /// The row, from what the record says of it or from the image of its page; `page_bytes` is the size of
    /// a table's page (`block_size`). `None` where the record holds neither, or in a form that is not
    /// understood.
    #[must_use]
    pub fn tuple(&self, page_bytes: usize) -> Option<Tuple<'a>> {
        match (&self.body, &self.image) {
            (Some((masks, behind, left_out)), _) => Tuple::of(*masks, behind, *left_out),
            (None, Some(image)) => Tuple::on_page(image, self.line, page_bytes),
            (None, None) => None,
        }
    }
}

/// Hands over what a record does to rows, in order. Of other records nothing.
///
/// # Errors
/// When it is of this kind and cannot be understood.
pub fn row_changes<'a>(
    record: &Record<'a>,
    each: &mut dyn FnMut(Relation, RowChange<'a>),
) -> Result<(), &'static str> {
    match (record.manager, record.info & KIND_MASK) {
        (Manager::HEAP, INSERT) => insert(record, each).ok_or("an insert is cut short"),
        (Manager::HEAP, DELETE) => delete(record, each).ok_or("a delete is cut short"),
        (Manager::HEAP, UPDATE | HOT_UPDATE) => {
            update(record, each).ok_or("an update is cut short")
        }
        (Manager::HEAP2, MULTI_INSERT) => {
            inserts(record, each).ok_or("an insert of rows is cut short")
        }
        _ => Ok(()),
    }
}

/// The place in the record's list, the relation and the number of the block with this id.
fn block(record: &Record<'_>, id: u8) -> Option<(usize, Relation, u32)> {
    let mut blocks = record.blocks.iter().enumerate();
    let (place, block) = blocks.find(|(_, block)| block.id == id)?;
    (block.fork == Fork::Main).then_some((place, block.relation, block.number))
}

fn insert<'a>(record: &Record<'a>, each: &mut dyn FnMut(Relation, RowChange<'a>)) -> Option<()> {
    let line = Fields::of(record.data).u16()?;
    let (place, relation, number) = block(record, 0)?;
    let (image, data) = record.held(place);
    let mut fields = Fields::of(data);
    let body = match data {
        [] => None,
        _ => Some((Masks::read(&mut fields)?, fields.rest(), LeftOut::default())),
    };
    let at = RowPlace {
        block: number,
        line,
    };
    let written = Written { line, image, body };
    each(relation, RowChange::Inserted { at, written });
    Some(())
}

fn inserts<'a>(record: &Record<'a>, each: &mut dyn FnMut(Relation, RowChange<'a>)) -> Option<()> {
    let mut fields = Fields::of(record.data);
    // Flags, and a byte that aligns.
    fields.u16()?;
    let count = fields.u16()?;
    let (place, relation, number) = block(record, 0)?;
    let (image, data) = record.held(place);
    let mut bodies = Fields::of(data);
    for position in 1..=count {
        // On a new page they follow each other, and are not told.
        let line = match record.info & INIT_PAGE {
            0 => fields.u16()?,
            _ => position,
        };
        let body = match data {
            [] => None,
            _ => Some(next_body(data.len(), &mut bodies)?),
        };
        let at = RowPlace {
            block: number,
            line,
        };
        let written = Written { line, image, body };
        each(relation, RowChange::Inserted { at, written });
    }
    Some(())
}

/// One of several rows (`xl_multi_insert_tuple`): aligned to two bytes.
fn next_body<'a>(all: usize, bodies: &mut Fields<'a>) -> Option<(Masks, &'a [u8], LeftOut)> {
    let done = all - bodies.rest().len();
    bodies.take(done % 2)?;
    let bytes = bodies.u16()?;
    let masks = Masks::read(bodies)?;
    let body = bodies.take(usize::from(bytes))?;
    Some((masks, body, LeftOut::default()))
}

fn delete<'a>(record: &Record<'a>, each: &mut dyn FnMut(Relation, RowChange<'a>)) -> Option<()> {
    let mut fields = Fields::of(record.data);
    fields.u32()?;
    let line = fields.u16()?;
    fields.u8()?;
    let gives_up = fields.u8()? & DELETE_GIVES_UP != 0;
    let (_, relation, number) = block(record, 0)?;
    let at = RowPlace {
        block: number,
        line,
    };
    each(relation, RowChange::Deleted { at, gives_up });
    Some(())
}

fn update<'a>(record: &Record<'a>, each: &mut dyn FnMut(Relation, RowChange<'a>)) -> Option<()> {
    let mut fields = Fields::of(record.data);
    fields.u32()?;
    let old_line = fields.u16()?;
    fields.u8()?;
    let flags = fields.u8()?;
    fields.u32()?;
    let line = fields.u16()?;
    let (place, relation, number) = block(record, 0)?;
    // The block of the old version is named only when it is another one.
    let old_number = block(record, 1).map_or(number, |(_, _, old)| old);
    let (image, data) = record.held(place);
    let mut fields = Fields::of(data);
    let body = match data {
        [] => None,
        _ => {
            let mut part = |flag| match flags & flag {
                0 => Some(0),
                _ => fields.u16().map(usize::from),
            };
            let left_out = LeftOut {
                in_front: part(UPDATE_PREFIX)?,
                behind: part(UPDATE_SUFFIX)?,
            };
            Some((Masks::read(&mut fields)?, fields.rest(), left_out))
        }
    };
    let from = RowPlace {
        block: old_number,
        line: old_line,
    };
    let to = RowPlace {
        block: number,
        line,
    };
    let written = Written { line, image, body };
    each(relation, RowChange::Updated { from, to, written });
    Some(())
}
