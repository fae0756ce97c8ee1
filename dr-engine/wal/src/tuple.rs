//! A row as the log holds it, and its columns (`access/htup_details.h`, `access/tupmacs.h`).

use std::borrow::Cow;

use crate::bytes::Fields;
use crate::pglz;
use crate::record::{Image, Packing};

/// Bytes of a row's header in front of its bitmap of nulls.
pub(crate) const HEADER_BYTES: usize = 23;
/// Where in it the two masks and the length of it all are.
const MASKS_OFFSET: usize = 18;
/// How many columns a row has.
const COLUMNS_MASK: u16 = 0x07FF;
/// Whether some of them are null.
const HAS_NULLS: u16 = 0x0001;

/// Bytes of a page's header, in front of its list of rows.
const PAGE_HEADER_BYTES: usize = 24;
const LINE_BYTES: usize = 4;
/// A line that has a row of its own.
const LINE_NORMAL: u32 = 1;

/// The only kind of value that is kept elsewhere, and how long what stands for it is.
const ELSEWHERE_ON_DISK: u8 = 18;
const ELSEWHERE_BYTES: usize = 18;

/// A row, or what the log holds of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: usize,
    has_nulls: bool,
    nulls: Cow<'a, [u8]>,
    /// So many bytes at the beginning of the values are as they were in the version before.
    as_before: usize,
    /// The values behind these, as far as they are held.
    values: Cow<'a, [u8]>,
    /// So many bytes at the end are as they were.
    as_before_behind: usize,
}

/// How much of a new version's values is left out, because it is the same in the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LeftOut {
    pub(crate) in_front: usize,
    pub(crate) behind: usize,
}

/// What stands in front of a row in the log: its masks, and where its values begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Masks {
    columns: u16,
    info: u16,
    values_offset: u8,
}

impl Masks {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            columns: fields.u16()?,
            info: fields.u16()?,
            values_offset: fields.u8()?,
        })
    }
}

impl<'a> Tuple<'a> {
    /// From what follows the header of a row: the bitmap of nulls, and the values without what is left out.
    pub(crate) fn of(masks: Masks, behind: &'a [u8], left_out: LeftOut) -> Option<Self> {
        let bitmap = usize::from(masks.values_offset).checked_sub(HEADER_BYTES)?;
        let (nulls, values) = behind.split_at_checked(bitmap)?;
        Some(Self {
            columns: usize::from(masks.columns & COLUMNS_MASK),
            has_nulls: masks.info & HAS_NULLS != 0,
            nulls: Cow::Borrowed(nulls),
            as_before: left_out.in_front,
            values: Cow::Borrowed(values),
            as_before_behind: left_out.behind,
        })
    }

    /// The row of a line on a page.
    pub(crate) fn on_page(image: &Image<'a>, line: u16, page_bytes: usize) -> Option<Self> {
        let page = Page::of(image, page_bytes)?;
        let place = PAGE_HEADER_BYTES + usize::from(line.checked_sub(1)?) * LINE_BYTES;
        let pointer = page.get(place, LINE_BYTES)?;
        let pointer = u32::from_le_bytes(*pointer.first_chunk()?);
        let (offset, kind, bytes) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        if kind != LINE_NORMAL {
            return None;
        }
        let row = page.get(usize::try_from(offset).ok()?, usize::try_from(bytes).ok()?)?;
        let masks = Masks::read(&mut Fields::of(row.get(MASKS_OFFSET..)?))?;
        match row {
            Cow::Borrowed(row) => Self::of(masks, row.get(HEADER_BYTES..)?, LeftOut::default()),
            Cow::Owned(row) => {
                let tuple = Tuple::of(masks, row.get(HEADER_BYTES..)?, LeftOut::default())?;
                Some(tuple.into_owned())
            }
        }
    }

    fn into_owned<'b>(self) -> Tuple<'b> {
        Tuple {
            columns: self.columns,
            has_nulls: self.has_nulls,
            nulls: Cow::Owned(self.nulls.into_owned()),
            as_before: self.as_before,
            values: Cow::Owned(self.values.into_owned()),
            as_before_behind: self.as_before_behind,
        }
    }

    fn is_null(&self, column: usize) -> bool {
        // A bit that is set stands for a value.
        let bits = self.nulls.get(column / 8).copied().unwrap_or(0);
        self.has_nulls && bits >> (column % 8) & 1 == 0
    }

    /// A byte of the values, if it is held.
    fn byte(&self, offset: usize) -> Option<u8> {
        let place = offset.checked_sub(self.as_before)?;
        self.values.get(place).copied()
    }

    fn value(&self, from: usize, to: usize) -> Value<'_> {
        let held = self.as_before..self.as_before + self.values.len();
        if to > held.end + self.as_before_behind {
            return Value::NotTold;
        }
        if to <= held.start || (from >= held.end && from < to) {
            return Value::AsBefore;
        }
        let (begin, end) = (from.max(held.start), to.min(held.end));
        let bytes = self.values.get(begin - held.start..end - held.start);
        match bytes {
            None => Value::NotTold,
            Some(bytes) if (begin, end) == (from, to) => Value::Bytes(bytes),
            // As much is left out as is the same: what is held next to it differs.
            Some(bytes) => Value::Changed {
                at: begin - from,
                bytes,
            },
        }
    }
}

/// A page from its image.
enum Page<'a> {
    /// Without the hole in its middle.
    Holed {
        bytes: &'a [u8],
        hole: std::ops::Range<usize>,
    },
    Unpacked {
        bytes: Vec<u8>,
        hole: std::ops::Range<usize>,
    },
}

impl<'a> Page<'a> {
    fn of(image: &Image<'a>, page_bytes: usize) -> Option<Self> {
        let hole_bytes = match image.packing {
            Packing::Plain => page_bytes.checked_sub(image.bytes.len())?,
            Packing::Pglz if image.has_hole => image.hole_bytes,
            Packing::Pglz => 0,
            Packing::Other => return None,
        };
        let hole = image.hole_offset..image.hole_offset + hole_bytes;
        Some(match image.packing {
            Packing::Plain => Self::Holed {
                bytes: image.bytes,
                hole,
            },
            _ => Self::Unpacked {
                bytes: pglz::unpack(image.bytes, page_bytes.checked_sub(hole_bytes)?)?,
                hole,
            },
        })
    }

    fn get(&self, offset: usize, length: usize) -> Option<Cow<'a, [u8]>> {
        let (Self::Holed { hole, .. } | Self::Unpacked { hole, .. }) = self;
        let place = match offset {
            before if before + length <= hole.start => before,
            behind if behind >= hole.end => behind - hole.len(),
            _ => return None,
        };
        match self {
            Self::Holed { bytes, .. } => bytes.get(place..place + length).map(Cow::Borrowed),
            Self::Unpacked { bytes, .. } => {
                let found = bytes.get(place..place + length)?;
                Some(Cow::Owned(found.to_vec()))
            }
        }
    }
}

/// What the log says of a column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'t> {
    /// There is none.
    Null,
    /// As the row holds it; of values that vary in length without the length.
    Bytes(&'t [u8]),
    /// It is what it was in the version before.
    AsBefore,
    /// It is not what it was in the version before, of which only these bytes differ.
    Changed {
        /// Where in the value they are.
        at: usize,
        /// These bytes.
        bytes: &'t [u8],
    },
    /// The log does not tell, or not in a form that is understood: kept elsewhere, or compressed.
    NotTold,
}

/// A column of a table, dropped ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Column {
    /// `pg_attribute.attlen`.
    length: i16,
    /// `pg_attribute.attalign`, in bytes.
    alignment: usize,
}

/// The columns of a table in the order in which rows hold them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout(Vec<Column>);

impl Layout {
    /// From the length (`attlen`; -1 where it varies) and the alignment in bytes of each column, dropped
    /// ones too.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = (i16, usize)>) -> Self {
        let column = |(length, alignment)| Column { length, alignment };
        Self(columns.into_iter().map(column).collect())
    }

    /// The value of the column at a place, from 0.
    #[must_use]
    pub fn value<'t>(&self, tuple: &'t Tuple<'_>, wanted: usize) -> Value<'t> {
        // A row from before the column was added does not have it.
        if wanted >= tuple.columns {
            return Value::NotTold;
        }
        let mut offset = 0;
        for (place, column) in self.0.iter().enumerate() {
            if tuple.is_null(place) {
                if place == wanted {
                    return Value::Null;
                }
                continue;
            }
            let Some((value, end)) = column.at(tuple, offset) else {
                return Value::NotTold;
            };
            if place == wanted {
                return value;
            }
            offset = end;
        }
        Value::NotTold
    }
}

impl Column {
    /// The value that begins at an offset or, aligned, behind it, and where it ends.
    fn at<'t>(&self, tuple: &'t Tuple<'_>, offset: usize) -> Option<(Value<'t>, usize)> {
        let aligned = offset.checked_next_multiple_of(self.alignment)?;
        if let Ok(length) = usize::try_from(self.length) {
            let end = aligned + length;
            return Some((tuple.value(aligned, end), end));
        }
        // Of text as C has it no table has a column.
        if self.length != -1 {
            return None;
        }
        // Short values are not aligned; what aligns long ones are zeros.
        let offset = match tuple.byte(offset)? {
            0 => aligned,
            _ => offset,
        };
        let first = tuple.byte(offset)?;
        if first == 1 {
            let is_known = tuple.byte(offset + 1)? == ELSEWHERE_ON_DISK;
            return is_known.then_some((Value::NotTold, offset + ELSEWHERE_BYTES));
        }
        if first & 1 == 1 {
            let end = offset + usize::from(first >> 1);
            return Some((tuple.value(offset + 1, end), end));
        }
        let mut header = [0; 4];
        for (place, byte) in header.iter_mut().enumerate() {
            *byte = tuple.byte(offset + place)?;
        }
        let bytes = usize::try_from(u32::from_le_bytes(header) >> 2).ok()?;
        let end = offset + bytes;
        match first & 3 {
            0 if bytes >= 4 => Some((tuple.value(offset + 4, end), end)),
            2 if bytes >= 4 => Some((Value::NotTold, end)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(columns: u16, nulls: &[u8], values: &[u8], left_out: [usize; 2]) -> Tuple<'static> {
        let masks = Masks {
            columns,
            info: u16::from(!nulls.is_empty()),
            values_offset: u8::try_from(HEADER_BYTES + nulls.len()).unwrap(),
        };
        let behind = [nulls, values].concat();
        let [in_front, behind_it] = left_out;
        let left_out = LeftOut {
            in_front,
            behind: behind_it,
        };
        Tuple::of(masks, &behind, left_out).unwrap().into_owned()
    }

    #[test]
    fn a_column_is_found_behind_others_of_every_kind() {
        // smallint, text, integer
        let layout = Layout::new([(2, 2), (-1, 4), (4, 4)]);
        let short = tuple(3, &[], &[7, 0, 7, b'a', b'b', 0, 0, 0, 5, 0, 0, 0], [0, 0]);
        assert_eq!(layout.value(&short, 0), Value::Bytes(&[7, 0]));
        // Three bytes with the length; aligned behind.
        let short = tuple(3, &[], &[7, 0, 7, b'a', b'b', 0, 0, 0, 5, 0, 0, 0], [0, 0]);
        assert_eq!(layout.value(&short, 1), Value::Bytes(b"ab"));
        assert_eq!(layout.value(&short, 2), Value::Bytes(&[5, 0, 0, 0]));
        let null = tuple(3, &[0b101], &[7, 0, 0, 0, 5, 0, 0, 0], [0, 0]);
        assert_eq!(layout.value(&null, 1), Value::Null);
        assert_eq!(layout.value(&null, 2), Value::Bytes(&[5, 0, 0, 0]));
        // Long text is aligned.
        let mut long = vec![7, 0, 0, 0];
        long.extend((204u32 << 2).to_le_bytes());
        long.extend([b'x'; 200]);
        long.extend([9, 0, 0, 0]);
        let long = tuple(3, &[], &long, [0, 0]);
        assert_eq!(layout.value(&long, 2), Value::Bytes(&[9, 0, 0, 0]));
        // And text that is elsewhere is passed over.
        let mut toasted = vec![7, 0, 1, 18];
        toasted.extend([0xAA; 16]);
        toasted.extend([9, 0, 0, 0]);
        let toasted = tuple(3, &[], &toasted, [0, 0]);
        assert_eq!(layout.value(&toasted, 1), Value::NotTold);
        assert_eq!(layout.value(&toasted, 2), Value::Bytes(&[9, 0, 0, 0]));
        // A column that was added later.
        let former = tuple(2, &[], &[7, 0, 7, b'a', b'b'], [0, 0]);
        assert_eq!(layout.value(&former, 2), Value::NotTold);
    }

    #[test]
    fn what_an_update_leaves_out_is_as_before() {
        let layout = Layout::new([(8, 8), (4, 4), (4, 4)]);
        let value = |values: &[u8], left_out: [usize; 2]| {
            let tuple = tuple(3, &[], values, left_out);
            match layout.value(&tuple, 1) {
                Value::Bytes(bytes) => format!("{bytes:?}"),
                Value::Changed { at, bytes } => format!("{bytes:?} at {at}"),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(value(&[6, 0, 0, 0], [12, 0]), "AsBefore");
        assert_eq!(value(&[9, 0, 0, 0, 0, 0, 0, 0], [0, 8]), "AsBefore");
        assert_eq!(value(&[2, 0, 0, 0], [8, 4]), "[2, 0, 0, 0]");
        // Of its bytes the first, or the last ones, are the same.
        assert_eq!(value(&[1, 0, 0, 7], [9, 3]), "[1, 0, 0] at 1");
        assert_eq!(value(&[5], [8, 7]), "[5] at 0");
        assert_eq!(value(&[5], [9, 6]), "[5] at 1");
        assert_eq!(value(&[2, 0], [8, 0]), "NotTold");
    }
}
