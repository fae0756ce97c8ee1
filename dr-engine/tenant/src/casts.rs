//! Between which types values are cast when a column's type has changed since the target.

use serde::{Deserialize, Serialize};

use crate::catalog::Column;

/// Two types between which values are cast, as they are declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cast {
    pub(crate) from: String,
    pub(crate) to: String,
    /// They are numbers, which are compared as such: 1.5 is 1.50.
    pub(crate) numbers: bool,
}

const NUMBERS: [&str; 6] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
];
const TEXTS: [&str; 3] = ["text", "character varying", "character"];

/// Whether values of the former type are cast to that of now: numbers to numbers, text to text. Whether they
/// survive it is asked of each. Dates and times are not: what a cast makes of them depends on a time zone.
pub(crate) fn cast(former: &Column, now: &Column) -> Option<Cast> {
    let are = |kind: &[&str]| {
        [former, now].iter().all(|column| {
            let plain = column.type_text.split('(').next().unwrap_or_default();
            kind.contains(&plain)
        })
    };
    let numbers = are(&NUMBERS);
    let is_cast = former.type_text != now.type_text && (numbers || are(&TEXTS));
    is_cast.then(|| Cast {
        from: former.type_text.clone(),
        to: now.type_text.clone(),
        numbers,
    })
}
