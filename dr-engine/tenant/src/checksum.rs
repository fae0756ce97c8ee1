//! The SHA-256 over rows, whatever their order, as the certificate names it (docs/TENANCY.md says how to take it in
//! plain SQL). In two steps, so that no value is large: rows whose own sums begin alike are put together first.

use sqlx::postgres::PgConnection;

use crate::{TenantError, sql};

/// Rows, and their sum. `record` is the row, `from` what follows FROM, with a condition if there is one.
pub(crate) async fn of(
    session: &mut PgConnection,
    record: &str,
    from: &str,
    what: &str,
) -> Result<(u64, String), TenantError> {
    let query = format!(
        "select coalesce(sum(rows), 0)::int8::text || ' ' || \
           encode(sha256(coalesce(string_agg(sum, ''::bytea order by head), ''::bytea)), 'hex') from \
           (select substr(sum, 1, 2) as head, count(*) as rows, sha256(string_agg(sum, ''::bytea order by sum)) as sum \
           from (select sha256(convert_to({record}::text, 'UTF8')) as sum from {from}) rows \
           group by substr(sum, 1, 2)) heads"
    );
    let text: String = sql::value(session, &query, format!("summing {what}")).await?;
    let unclear = || TenantError::format("a checksum", &text);
    let (rows, sum) = text.split_once(' ').ok_or_else(unclear)?;
    Ok((rows.parse().map_err(|_| unclear())?, sum.to_owned()))
}
