//! References of stored rows to erased ones that ON DELETE SET NULL takes away.
//!
//! A row that stays refers to nothing where it referred to an erased one, before the restore and after it: what the
//! restore wrote is looked for in the live database, which has cleared the reference with the erased row, and what is
//! written back must not refer to a row that is not there. A reference that the restore did not change stays as long
//! as the erased row is live.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;

use super::gone::{Gone, Step, Table};
use crate::TenantError;
use crate::map::TableName;
use crate::sql::{self, ident};

/// Fields of a line that hold nothing then, counted from the line's first value.
pub(super) type Fields = BTreeMap<u64, BTreeSet<usize>>;

/// One of a stored row's two versions.
#[derive(Clone, Copy)]
enum Side {
    Old,
    New,
}

impl Side {
    fn letter(self) -> char {
        match self {
            Self::Old => 'o',
            Self::New => 'n',
        }
    }
}

impl Gone {
    /// Of the rows that were found last, and of lines that are not among them.
    pub(super) async fn cleared(
        &self,
        live: &mut PgConnection,
    ) -> Result<BTreeMap<TableName, Fields>, TenantError> {
        let mut cleared: BTreeMap<TableName, Fields> = BTreeMap::new();
        for (step, columns) in &self.references {
            let (Some(child), Some(parent)) = (
                self.tables.get(&step.child).filter(|child| child.stored),
                self.tables.get(&step.parent),
            ) else {
                continue;
            };
            let places = |names: &[String]| -> Option<Vec<usize>> {
                names
                    .iter()
                    .map(|name| child.slice.place_of(name))
                    .collect()
            };
            let (Some(of), Some(cleared_places)) = (places(&step.columns), places(columns)) else {
                continue;
            };
            let fields = cleared.entry(step.child.clone()).or_default();
            let mut add = |lines: &[i64], offset: usize| {
                for line in lines {
                    let fields = fields.entry(sql::count(*line)).or_default();
                    fields.extend(cleared_places.iter().map(|place| offset + place));
                }
            };
            let gone_now = gone_now(live, child, parent, step).await?;
            add(&gone_now, child.slice.columns.len());
            let changed: String = of
                .iter()
                .map(|place| format!(" or l.o{place}::text is distinct from l.n{place}::text"))
                .collect();
            let gone_now: Vec<String> = gone_now.iter().map(ToString::to_string).collect();
            let when = format!(
                "l.op <> 'I' and (l.op = 'D'{changed} or l.line = any ('{{{}}}'::bigint[]))",
                gone_now.join(",")
            );
            add(
                &lines(live, child, parent, step, (Side::Old, &when)).await?,
                0,
            );
        }
        cleared.retain(|_, fields| !fields.is_empty());
        Ok(cleared)
    }
}

/// Lines by which a row referred to one after the restore that is erased and not live any more.
async fn gone_now(
    live: &mut PgConnection,
    child: &Table,
    parent: &Table,
    step: &Step,
) -> Result<Vec<i64>, TenantError> {
    let of_live = |name: &str| Some(format!("q.{}", ident(name)));
    let join = step.join(of_live, |name| of_line(child, name, Side::New));
    let Some(join) = join.filter(|_| parent.live.is_some()) else {
        return Ok(Vec::new());
    };
    let when = format!(
        "l.op <> 'D' and not exists (select from {} q where {join})",
        parent.slice.from()
    );
    lines(live, child, parent, step, (Side::New, &when)).await
}

fn of_line(child: &Table, name: &str, side: Side) -> Option<String> {
    let place = child.slice.place_of(name)?;
    Some(format!("l.{}{place}", side.letter()))
}

/// Lines of which this side refers to an erased row, and that are not erased ones themselves.
async fn lines(
    live: &mut PgConnection,
    child: &Table,
    parent: &Table,
    step: &Step,
    (side, when): (Side, &str),
) -> Result<Vec<i64>, TenantError> {
    let of_parent = |name: &str| parent.known_as(name);
    let Some(join) = step.join(of_parent, |name| of_line(child, name, side)) else {
        return Ok(Vec::new());
    };
    let query = format!(
        "select array(select l.line from {} l where exists (select from {} p where {join}) and {when} \
           and not exists (select from {} x where x.line = l.line) order by l.line)",
        child.stored_rows(),
        parent.gone(),
        child.gone()
    );
    sql::value(live, &query, child.what()).await
}
