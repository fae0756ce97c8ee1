//! Names and values in SQL, and the session in which values have one text.

use dr_model::TableName;

/// The settings under which values have the same text on every server, and names mean one thing.
/// `row_security = off` makes a query that would be filtered fail instead: an unseen row is not an absent row.
/// A lock of somebody else, a migration's, is waited for for a while and not for ever. Queries over every column of a table
/// take longer to compile than to run.
pub const SESSION: &str = "set search_path = ''; set row_security = off; \
    set standard_conforming_strings = on; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres'; \
    set timezone = 'UTC'; set extra_float_digits = 1; set bytea_output = 'hex'; \
    set lc_monetary = 'C'; set xmloption = 'content'; set statement_timeout = 0; \
    set lock_timeout = '10s'; set jit = off; \
    set idle_in_transaction_session_timeout = 0; set client_encoding = 'UTF8'";

/// A name as an SQL identifier.
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as an SQL literal (`standard_conforming_strings` is on).
#[must_use]
pub fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A table's qualified name as SQL.
#[must_use]
pub fn table(name: &TableName) -> String {
    format!("{}.{}", ident(&name.schema), ident(&name.name))
}
