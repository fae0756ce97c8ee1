//! One record: its header, the blocks it refers to, and its main data.

use std::fmt;

use dr_model::Lsn;

use crate::bytes::Fields;

/// Bytes of `XLogRecord`, the header of every record.
pub const HEADER_BYTES: usize = 24;
/// Where in the header its own checksum is, which is not summed.
const CRC_OFFSET: usize = 20;

/// The largest block of a relation that can be configured (`--with-blocksize`).
const BLOCK_BYTES_MAX: u16 = 32 * 1024;

const BLOCK_ID_MAX: u8 = 32;
const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;
/// Compressed with any method: one bit before version 15, three since.
const IMAGE_COMPRESSED_14: u8 = 0x02;
const IMAGE_COMPRESSED_15: u8 = 0x1C;
/// Of these, the one that is PostgreSQL's own method.
const IMAGE_PGLZ_15: u8 = 0x04;

/// The part of PostgreSQL that wrote a record (`access/rmgrlist.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager(pub u8);

impl Manager {
    /// Checkpoints, switches, full-page images, parameters.
    pub const XLOG: Self = Self(0);
    /// Commit, abort, prepare.
    pub const TRANSACTION: Self = Self(1);
    /// Relation files made and truncated.
    pub const STORAGE: Self = Self(2);
    /// Databases made and dropped.
    pub const DATABASE: Self = Self(4);
    /// Locks and running transactions, for standbys.
    pub const STANDBY: Self = Self(8);
    /// Rows, second list.
    pub const HEAP2: Self = Self(9);
    /// Rows.
    pub const HEAP: Self = Self(10);

    const NAMES: [&'static str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];

    /// Its name as `pg_waldump` prints it; `None` for an extension's own and for what is not known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.get(usize::from(self.0)).copied()
    }
}

/// Where the files of a relation are: tablespace, database, file number (`RelFileLocator`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; 0 for relations that all share.
    pub database: u32,
    /// The file's number (`pg_class.relfilenode`).
    pub file: u32,
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.file)
    }
}

impl Relation {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            tablespace: fields.u32()?,
            database: fields.u32()?,
            file: fields.u32()?,
        })
    }
}

/// A fork of a relation (`common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The relation itself.
    Main,
    /// Its free space map.
    FreeSpace,
    /// Its visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

impl Fork {
    pub(crate) fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Main),
            1 => Some(Self::FreeSpace),
            2 => Some(Self::Visibility),
            3 => Some(Self::Init),
            _ => None,
        }
    }

    /// Its name as PostgreSQL writes it behind a file's number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FreeSpace => "fsm",
            Self::Visibility => "vm",
            Self::Init => "init",
        }
    }
}

/// A block that a record refers to: it may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The reference's number within the record.
    pub id: u8,
    /// The relation.
    pub relation: Relation,
    /// Its fork.
    pub fork: Fork,
    /// The block in the fork, from 0.
    pub number: u32,
    /// Whether the record carries the whole page.
    pub has_image: bool,
    /// Whether the page is made anew from the record.
    pub will_init: bool,
    /// What the record holds of it.
    pub(crate) held: Held,
}

/// How much a record holds of a block, further behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    image: Option<ImageHead>,
    data_bytes: u16,
}

impl Held {
    fn bytes(self) -> usize {
        let image = self.image.map_or(0, |image| usize::from(image.bytes));
        image + usize::from(self.data_bytes)
    }
}

/// How the image of a page is kept (`XLogRecordBlockImageHeader`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ImageHead {
    bytes: u16,
    hole_offset: u16,
    has_hole: bool,
    /// Told only where the image is compressed: else it is what is missing.
    hole_bytes: u16,
    packing: Packing,
}

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Not at all.
    Plain,
    /// By PostgreSQL's own method.
    Pglz,
    /// By another one.
    Other,
}

/// A page as a record holds it: without the zeros in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) hole_offset: usize,
    pub(crate) has_hole: bool,
    /// Of a compressed one; of others it is what lacks to a page.
    pub(crate) hole_bytes: usize,
    pub(crate) packing: Packing,
}

/// A whole record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where the next one begins.
    pub end: Lsn,
    /// Where the one before it begins.
    pub previous: Lsn,
    /// Bytes of it all, without page headers in between.
    pub length: u32,
    /// The transaction, or subtransaction, that wrote it; 0 for none.
    pub xid: u32,
    /// What kind of record of its manager it is; the low four bits are flags of the WAL itself.
    pub info: u8,
    /// Who wrote it.
    pub manager: Manager,
    /// The blocks it refers to.
    pub blocks: Vec<Block>,
    /// What it holds of these, one after the other.
    pub(crate) held: &'a [u8],
    /// What its manager keeps beside the blocks.
    pub data: &'a [u8],
}

impl<'a> Record<'a> {
    /// What it holds of the block at a place of its list: the image, and the data that its manager keeps for
    /// the block.
    pub(crate) fn held(&self, place: usize) -> (Option<Image<'a>>, &'a [u8]) {
        let before: usize = (self.blocks.iter().take(place))
            .map(|block| block.held.bytes())
            .sum();
        let head = self.blocks.get(place).map(|block| block.held);
        let (head, rest) = (head.unwrap_or_default(), self.held.get(before..));
        let image_bytes = head.image.map_or(0, |image| usize::from(image.bytes));
        let Some((image, rest)) = rest.and_then(|rest| rest.split_at_checked(image_bytes)) else {
            return (None, &[]);
        };
        let image = head.image.map(|head| Image {
            bytes: image,
            hole_offset: usize::from(head.hole_offset),
            has_hole: head.has_hole,
            hole_bytes: usize::from(head.hole_bytes),
            packing: head.packing,
        });
        let data = rest.get(..usize::from(head.data_bytes));
        (image, data.unwrap_or_default())
    }
}

/// The fixed part at the beginning of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) length: u32,
    pub(crate) xid: u32,
    pub(crate) previous: Lsn,
    pub(crate) info: u8,
    pub(crate) manager: Manager,
    pub(crate) crc: u32,
}

impl Header {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(bytes);
        let length = fields.u32()?;
        let xid = fields.u32()?;
        let previous = Lsn(fields.u64()?);
        let info = fields.u8()?;
        let manager = Manager(fields.u8()?);
        fields.u16()?;
        Some(Self {
            length,
            xid,
            previous,
            info,
            manager,
            crc: fields.u32()?,
        })
    }
}

/// Whether a whole record has the checksum that it tells: CRC-32C of what follows the header, then of
/// the header up to the sum.
pub(crate) fn sum_is_right(record: &[u8], header: &Header) -> bool {
    let (Some(body), Some(head)) = (record.get(HEADER_BYTES..), record.get(..CRC_OFFSET)) else {
        return false;
    };
    crc32c::crc32c_append(crc32c::crc32c(body), head) == header.crc
}

/// What is wrong with a record.
pub(crate) type Wrong = &'static str;

/// What a record consists of behind its header.
pub(crate) struct Parts<'a> {
    pub(crate) blocks: Vec<Block>,
    pub(crate) held: &'a [u8],
    pub(crate) data: &'a [u8],
}

/// Reads the list of blocks and the place of the main data. `bytes` is the whole record.
pub(crate) fn parts(bytes: &[u8], major: u32) -> Result<Parts<'_>, Wrong> {
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let mut fields = Fields::of(body);
    let mut blocks = Vec::new();
    let (mut behind, mut data_bytes) = (0usize, 0usize);
    let mut last: Option<Relation> = None;
    // The list ends where what it announces begins.
    while fields.rest().len() > behind + data_bytes {
        let id = fields.u8().ok_or("its list of blocks is cut short")?;
        match id {
            ID_DATA_SHORT => {
                data_bytes = usize::from(fields.u8().ok_or("its data has no length")?);
                break;
            }
            ID_DATA_LONG => {
                let length = fields.u32().ok_or("its data has no length")?;
                data_bytes = usize::try_from(length).unwrap_or(usize::MAX);
                break;
            }
            ID_ORIGIN => {
                fields.u16().ok_or("its origin is cut short")?;
            }
            ID_TOPLEVEL_XID => {
                fields.u32().ok_or("its transaction is cut short")?;
            }
            id if id <= BLOCK_ID_MAX => {
                let block = block(id, &mut fields, &mut last, major)?;
                behind += block.held.bytes();
                blocks.push(block);
            }
            _ => return Err("its list of blocks has an entry of unknown kind"),
        }
    }
    if fields.rest().len() != behind.saturating_add(data_bytes) {
        return Err("its parts are not as long as it says");
    }
    let (held, data) = fields.rest().split_at_checked(behind).unwrap_or_default();
    Ok(Parts { blocks, held, data })
}

fn block(
    id: u8,
    fields: &mut Fields<'_>,
    last: &mut Option<Relation>,
    major: u32,
) -> Result<Block, Wrong> {
    const CUT: Wrong = "a block of its list is cut short";
    let flags = fields.u8().ok_or(CUT)?;
    let data_bytes = fields.u16().ok_or(CUT)?;
    if (flags & HAS_DATA == 0) != (data_bytes == 0) {
        return Err("a block of its list has data and none");
    }
    let image = match flags & HAS_IMAGE {
        0 => None,
        _ => Some(image(fields, major)?),
    };
    if flags & SAME_RELATION == 0 {
        *last = Some(Relation::read(fields).ok_or(CUT)?);
    }
    Ok(Block {
        id,
        relation: last.ok_or("a block of its list belongs to no relation")?,
        fork: Fork::of(flags & FORK_MASK).ok_or("a block of its list is of an unknown fork")?,
        number: fields.u32().ok_or(CUT)?,
        has_image: flags & HAS_IMAGE != 0,
        will_init: flags & WILL_INIT != 0,
        held: Held { image, data_bytes },
    })
}

/// How a page's image is kept.
fn image(fields: &mut Fields<'_>, major: u32) -> Result<ImageHead, Wrong> {
    const CUT: Wrong = "an image of its list is cut short";
    let bytes = fields.u16().ok_or(CUT)?;
    let hole_offset = fields.u16().ok_or(CUT)?;
    let info = fields.u8().ok_or(CUT)?;
    let packing = match major {
        ..=14 if info & IMAGE_COMPRESSED_14 != 0 => Packing::Pglz,
        15.. if info & IMAGE_PGLZ_15 != 0 => Packing::Pglz,
        15.. if info & IMAGE_COMPRESSED_15 != 0 => Packing::Other,
        _ => Packing::Plain,
    };
    let has_hole = info & IMAGE_HAS_HOLE != 0;
    let hole_bytes = match has_hole && packing != Packing::Plain {
        true => fields.u16().ok_or(CUT)?,
        false => 0,
    };
    if bytes > BLOCK_BYTES_MAX || hole_offset > BLOCK_BYTES_MAX {
        return Err("an image of its list is larger than a page");
    }
    Ok(ImageHead {
        bytes,
        hole_offset,
        has_hole,
        hole_bytes,
        packing,
    })
}
