//! Whose a row is by what it holds, and the keys by which rows belong to other rows.

use dr_wal::{Layout, Tuple, Value, Written};

/// The number of a set of columns of one table that rows of other tables refer to.
pub(super) type Space = usize;

/// The values of a key, each with its length in front.
pub(super) type Key = Box<[u8]>;

/// Puts a key together.
pub(super) fn key_of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut key = Vec::new();
    for value in values {
        key.extend_from_slice(&(value.len() as u64).to_le_bytes());
        key.extend_from_slice(value);
    }
    key.into_boxed_slice()
}

/// What the content of a row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It is the tenant's.
    Ours,
    /// It is another's, or nobody's.
    Others,
    /// It belongs to the row with this key.
    Of(Space, Key),
    /// It is not whose it was, and may be the tenant's now.
    Changed,
    /// Nothing, or that nothing changed.
    Nothing,
}

/// How rows tell whose they are.
#[derive(Debug, Clone)]
pub(super) enum Tells {
    /// They do not, or in a way that is not understood.
    Nothing,
    /// By the tenant column.
    Tenant {
        /// Its place.
        column: usize,
        /// What it holds for the tenant; `None` where no value of its type means it.
        holds: Option<Vec<u8>>,
    },
    /// By the row they refer to.
    Parent {
        /// The columns there.
        space: Space,
        /// The places of those here.
        columns: Vec<usize>,
    },
}

/// How the rows of a file are read.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) layout: Layout,
    /// `block_size`.
    pub(super) page_bytes: usize,
    pub(super) tells: Tells,
    /// The places of columns that other rows refer to.
    pub(super) keys: Vec<(Space, Vec<usize>)>,
}

/// What is read of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) told: Told,
    /// Its keys; `None` where one cannot be read.
    pub(super) keys: Vec<(Space, Option<Key>)>,
}

/// The values of some columns.
enum Values {
    Null,
    Key(Key),
    AsBefore,
    Changed,
    NotTold,
}

impl Content {
    /// What a row says, or its next version: `was_ours` if it is known that the one before was the tenant's.
    pub(super) fn read(&self, written: &Written<'_>, was_ours: bool) -> Reading {
        let tuple = written.tuple(self.page_bytes);
        let keys = (self.keys.iter()).map(|(space, columns)| {
            let values = tuple.as_ref().map(|tuple| self.values(tuple, columns));
            let key = match values {
                Some(Values::Key(key)) => Some(key),
                // No row refers to it.
                Some(Values::Null) => Some(key_of([])),
                _ => None,
            };
            (*space, key)
        });
        Reading {
            told: (tuple.as_ref()).map_or(Told::Nothing, |tuple| self.told(tuple, was_ours)),
            keys: keys.collect(),
        }
    }

    fn told(&self, tuple: &Tuple<'_>, was_ours: bool) -> Told {
        match &self.tells {
            Tells::Nothing => Told::Nothing,
            Tells::Tenant { column, holds } => match self.layout.value(tuple, *column) {
                Value::Null => Told::Others,
                Value::Bytes(bytes) if holds.as_deref() == Some(bytes) => Told::Ours,
                Value::Bytes(_) => Told::Others,
                // To whom it went does not matter.
                Value::Changed { .. } if was_ours => Told::Others,
                Value::Changed { at, bytes } => {
                    let part = |holds: &Vec<u8>| holds.get(at..at + bytes.len()) == Some(bytes);
                    match holds.as_ref().is_some_and(part) {
                        true => Told::Changed,
                        false => Told::Others,
                    }
                }
                Value::AsBefore | Value::NotTold => Told::Nothing,
            },
            Tells::Parent { space, columns } => match self.values(tuple, columns) {
                Values::Null => Told::Others,
                Values::Key(key) => Told::Of(*space, key),
                Values::Changed => Told::Changed,
                Values::AsBefore | Values::NotTold => Told::Nothing,
            },
        }
    }

    fn values(&self, tuple: &Tuple<'_>, columns: &[usize]) -> Values {
        let mut bytes = Vec::new();
        let (mut as_before, mut changed) = (false, false);
        for column in columns {
            match self.layout.value(tuple, *column) {
                Value::Null => return Values::Null,
                Value::Bytes(value) => bytes.push(value),
                Value::AsBefore => as_before = true,
                Value::Changed { .. } => changed = true,
                Value::NotTold => return Values::NotTold,
            }
        }
        // What is told whole beside what is not may be new, or not.
        match (changed, as_before) {
            (true, _) => Values::Changed,
            (false, true) if bytes.is_empty() => Values::AsBefore,
            (false, true) => Values::NotTold,
            (false, false) => Values::Key(key_of(bytes)),
        }
    }
}

/// What a column of this type holds for a value, of which this is the text; `Some(None)` where no value of the
/// type means it, `None` for types of which equal values may be held differently. `is_utf8`: so is the
/// database's encoding.
pub(super) fn held(column_type: &str, text: &str, is_utf8: bool) -> Option<Option<Vec<u8>>> {
    Some(match column_type {
        "smallint" => text.parse::<i16>().ok().map(|it| it.to_le_bytes().to_vec()),
        "integer" => text.parse::<i32>().ok().map(|it| it.to_le_bytes().to_vec()),
        "bigint" => text.parse::<i64>().ok().map(|it| it.to_le_bytes().to_vec()),
        "uuid" => hex::decode(text.replace('-', ""))
            .ok()
            .filter(|it| it.len() == 16),
        "text" | "character varying" if is_utf8 || text.is_ascii() => {
            Some(text.as_bytes().to_vec())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_held_as_the_type_of_its_column() {
        assert_eq!(held("integer", "258", true), Some(Some(vec![2, 1, 0, 0])));
        assert_eq!(held("smallint", "70000", true), Some(None));
        assert_eq!(held("text", "07", false), Some(Some(b"07".to_vec())));
        let uuid = held("uuid", "00112233-4455-6677-8899-aabbccddeeff", true);
        assert_eq!(uuid.unwrap().unwrap()[..4], [0, 0x11, 0x22, 0x33]);
        assert_eq!(held("uuid", "7", true), Some(None));
        assert_eq!(held("numeric", "7", true), None);
        assert_eq!(held("text", "søn", false), None);
    }

    #[test]
    fn keys_differ_where_their_values_are_parted_otherwise() {
        let (one, other) = (key_of([&b"ab"[..], b"c"]), key_of([&b"a"[..], b"bc"]));
        assert_ne!(one, other);
        assert_eq!(one, key_of([&b"ab"[..], b"c"]));
    }
}
