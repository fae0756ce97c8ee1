//! What the system catalogs say of a database's tables: plain rows, read once, so that everything
//! decided from them can be tried without a server. (PostgreSQL documentation, ch. 53.)

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::map::TableName;
use crate::sql;

/// An object's identifier within its database.
pub(crate) type Oid = u32;

/// A table, partition, foreign table or materialized view.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Relation {
    pub(crate) oid: Oid,
    #[serde(flatten)]
    pub(crate) name: TableName,
    /// `r` table, `p` partitioned table, `f` foreign table, `m` materialized view.
    pub(crate) kind: char,
    /// `p` permanent, `u` unlogged.
    pub(crate) persistence: char,
    /// For a partition: the topmost partitioned table.
    pub(crate) root: Option<Oid>,
    /// The extension it belongs to.
    pub(crate) extension: Option<String>,
    /// `d` primary key, `n` nothing, `f` full, `i` index.
    pub(crate) replica_identity: char,
    /// Columns of the partition key, expressions included.
    pub(crate) partition_columns: Vec<String>,
}

/// A column.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Column {
    pub(crate) relation: Oid,
    pub(crate) name: String,
    /// Its declared type.
    pub(crate) type_text: String,
    /// The same with domains resolved.
    pub(crate) base_type: String,
    /// The same without a length or precision, which a cast would cut to in silence.
    pub(crate) plain_type: String,
    /// Whether it is an enumeration.
    pub(crate) enumeration: bool,
    /// The equality by which its type is indexed, qualified; that of another type where it has none of its own.
    pub(crate) equals: Option<String>,
    pub(crate) not_null: bool,
    pub(crate) generated: bool,
    /// GENERATED ALWAYS AS IDENTITY.
    pub(crate) identity_always: bool,
}

/// A unique or exclusion index.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    pub(crate) relation: Oid,
    pub(crate) primary: bool,
    pub(crate) exclusion: bool,
    pub(crate) immediate: bool,
    pub(crate) partial: bool,
    pub(crate) expression: bool,
    /// Key columns; without expressions.
    pub(crate) columns: Vec<String>,
    /// Equality operators of the key columns, qualified.
    pub(crate) operators: Vec<String>,
    /// All columns it depends on.
    pub(crate) depends: Vec<String>,
}

impl Index {
    /// Whether it proves that these columns of a table mean one row at most.
    pub(crate) fn is_unique_on(&self, relation: Oid, columns: &[String]) -> bool {
        self.relation == relation
            && !self.partial
            && !self.expression
            && !self.exclusion
            && self.columns.len() == columns.len()
            && self.columns.iter().all(|name| columns.contains(name))
    }
}

/// A foreign key.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) child: Oid,
    pub(crate) parent: Oid,
    pub(crate) columns: Vec<String>,
    pub(crate) parent_columns: Vec<String>,
    /// Equality operators, parent's column on the left.
    pub(crate) operators: Vec<String>,
    /// ON DELETE CASCADE.
    pub(crate) cascade: bool,
    /// The columns that ON DELETE SET NULL clears; none where it says something else.
    pub(crate) set_null: Vec<String>,
    pub(crate) match_full: bool,
}

/// A deferrable unique, primary key or exclusion constraint: not enforced while triggers are off.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Deferrable {
    pub(crate) relation: Oid,
    pub(crate) name: String,
    pub(crate) exclusion: bool,
    pub(crate) columns: Vec<String>,
    /// Operators that must not all hold between two rows.
    pub(crate) operators: Vec<String>,
    pub(crate) nulls_not_distinct: bool,
    /// It has an expression or a predicate, which this crate cannot check.
    pub(crate) complicated: bool,
}

/// A trigger or rule that fires even with `session_replication_role = replica`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Firing {
    pub(crate) relation: Oid,
    pub(crate) name: String,
}

/// A sequence that fills a column.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) relation: Oid,
    pub(crate) column: String,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) increment: i64,
}

/// A table in a publication.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Published {
    pub(crate) relation: Oid,
    pub(crate) publication: String,
    pub(crate) updates: bool,
    pub(crate) deletes: bool,
}

/// Everything read from one database.
#[derive(Debug, Clone, Default)]
pub(crate) struct CatalogRows {
    pub(crate) relations: Vec<Relation>,
    pub(crate) columns: Vec<Column>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) foreign_keys: Vec<ForeignKey>,
    pub(crate) deferrables: Vec<Deferrable>,
    pub(crate) firing: Vec<Firing>,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) published: Vec<Published>,
    /// Logical replication slots of this database.
    pub(crate) slots: Vec<String>,
}

const RELATIONS: &str = "select c.oid::int8 as oid, n.nspname as schema, c.relname as name, \
      c.relkind::text as kind, c.relpersistence::text as persistence, \
      case when c.relispartition then pg_partition_root(c.oid)::oid::int8 end as root, \
      (select e.extname from pg_depend d join pg_extension e on e.oid = d.refobjid \
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e' \
          and d.refclassid = 'pg_extension'::regclass limit 1) as extension, \
      c.relreplident::text as replica_identity, \
      array(select distinct a.attname from pg_depend d join pg_attribute a \
        on a.attrelid = c.oid and a.attnum = d.objsubid \
        where c.relkind = 'p' and d.classid = 'pg_class'::regclass and d.objid = c.oid \
          and d.objsubid > 0 and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid \
          and d.refobjsubid = 0 and d.deptype = 'i') as partition_columns \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p', 'f', 'm') and c.relpersistence <> 't' \
      and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
    order by n.nspname, c.relname";

const COLUMNS: &str = "select a.attrelid::int8 as relation, a.attname as name, \
      format_type(a.atttypid, a.atttypmod) as type_text, \
      format_type(b.oid, b.mod) as base_type, format_type(b.oid, -1) as plain_type, \
      b.kind = 'e' as enumeration, \
      (select format('operator(%I.%s)', n2.nspname, o.oprname) \
        from pg_opclass oc join pg_am am on am.oid = oc.opcmethod and am.amname = 'btree' \
        join pg_amop ao on ao.amopfamily = oc.opcfamily and ao.amoplefttype = oc.opcintype \
          and ao.amoprighttype = oc.opcintype and ao.amopstrategy = 3 and ao.amoppurpose = 's' \
        join pg_operator o on o.oid = ao.amopopr join pg_namespace n2 on n2.oid = o.oprnamespace \
        where oc.opcdefault and oc.opcintype = b.oid limit 1) as equals, \
      a.attnotnull as not_null, a.attgenerated <> '' as generated, \
      a.attidentity = 'a' as identity_always \
    from pg_attribute a join pg_class c on c.oid = a.attrelid \
      join pg_namespace n on n.oid = c.relnamespace \
      cross join lateral (with recursive b(oid, mod, kind, base, base_mod) as ( \
          select t.oid, a.atttypmod, t.typtype, t.typbasetype, t.typtypmod \
            from pg_type t where t.oid = a.atttypid \
          union all select t.oid, b.base_mod, t.typtype, t.typbasetype, t.typtypmod \
            from b join pg_type t on t.oid = b.base where b.kind = 'd') \
        select b.oid, b.mod, b.kind from b where b.kind <> 'd') b \
    where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'f') \
      and c.relpersistence <> 't' \
      and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
    order by a.attrelid, a.attnum";

const INDEXES: &str = "select i.indrelid::int8 as relation, i.indisprimary as primary, \
      i.indisexclusion as exclusion, i.indimmediate as immediate, i.indpred is not null as partial, \
      i.indexprs is not null as expression, \
      array(select a.attname from unnest(i.indkey::int2[]) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number \
        where k.place <= i.indnkeyatts order by k.place) as columns, \
      array(select format('operator(%I.%s)', on_.nspname, o.oprname) \
        from unnest(i.indclass::oid[]) with ordinality k(class, place) \
        join pg_opclass oc on oc.oid = k.class \
        join pg_amop ao on ao.amopfamily = oc.opcfamily and ao.amoplefttype = oc.opcintype \
          and ao.amoprighttype = oc.opcintype and ao.amopstrategy = 3 and ao.amoppurpose = 's' \
        join pg_operator o on o.oid = ao.amopopr \
        join pg_namespace on_ on on_.oid = o.oprnamespace order by k.place) as operators, \
      array(select distinct a.attname from pg_depend d join pg_attribute a \
        on a.attrelid = i.indrelid and a.attnum = d.refobjsubid \
        where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid \
          and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid \
          and d.refobjsubid > 0) as depends \
    from pg_index i join pg_class c on c.oid = i.indrelid \
      join pg_namespace n on n.oid = c.relnamespace \
    where (i.indisunique or i.indisexclusion) and i.indislive and i.indisvalid \
      and c.relkind in ('r', 'p') \
      and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
    order by i.indrelid, i.indisprimary desc, i.indexrelid";

const FOREIGN_KEYS: &str = "select con.conname as name, con.conrelid::int8 as child, \
      con.confrelid::int8 as parent, \
      array(select a.attname from unnest(con.conkey) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number \
        order by k.place) as columns, \
      array(select a.attname from unnest(con.confkey) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.number \
        order by k.place) as parent_columns, \
      array(select format('operator(%I.%s)', n.nspname, o.oprname) \
        from unnest(con.conpfeqop) with ordinality k(operator, place) \
        join pg_operator o on o.oid = k.operator \
        join pg_namespace n on n.oid = o.oprnamespace order by k.place) as operators, \
      con.confdeltype = 'c' as cascade, \
      array(select a.attname from jsonb_array_elements_text( \
            case when con.confdeltype <> 'n' then '[]' \
              when jsonb_typeof(to_jsonb(con) -> 'confdelsetcols') = 'array' \
              then to_jsonb(con) -> 'confdelsetcols' else to_jsonb(con.conkey) end) k(number) \
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number::int) as set_null, \
      con.confmatchtype = 'f' as match_full \
    from pg_constraint con where con.contype = 'f' and con.conparentid = 0 \
    order by con.conrelid, con.conname";

const DEFERRABLES: &str = "select con.conrelid::int8 as relation, con.conname as name, \
      con.contype = 'x' as exclusion, \
      array(select a.attname from unnest(con.conkey) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number \
        order by k.place) as columns, \
      case when con.contype = 'x' then \
        array(select format('operator(%I.%s)', n.nspname, o.oprname) \
          from unnest(con.conexclop) with ordinality k(operator, place) \
          join pg_operator o on o.oid = k.operator \
          join pg_namespace n on n.oid = o.oprnamespace order by k.place) \
      else \
        array(select format('operator(%I.%s)', n.nspname, o.oprname) \
          from unnest(i.indclass::oid[]) with ordinality k(class, place) \
          join pg_opclass oc on oc.oid = k.class \
          join pg_amop ao on ao.amopfamily = oc.opcfamily and ao.amoplefttype = oc.opcintype \
            and ao.amoprighttype = oc.opcintype and ao.amopstrategy = 3 and ao.amoppurpose = 's' \
          join pg_operator o on o.oid = ao.amopopr \
          join pg_namespace n on n.oid = o.oprnamespace order by k.place) end as operators, \
      coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) as nulls_not_distinct, \
      (i.indexprs is not null or i.indpred is not null) as complicated \
    from pg_constraint con join pg_index i on i.indexrelid = con.conindid \
    where con.contype in ('p', 'u', 'x') and con.condeferrable and con.conparentid = 0 \
    order by con.conrelid, con.conname";

const FIRING: &str = "select t.tgrelid::int8 as relation, 'trigger ' || t.tgname as name \
      from pg_trigger t where not t.tgisinternal and t.tgenabled in ('A', 'R') \
    union all select r.ev_class::int8, 'rule ' || r.rulename from pg_rewrite r \
      where r.ev_enabled in ('A', 'R') and r.rulename <> '_RETURN'";

const SEQUENCES: &str = "select distinct x.relation::int8 as relation, a.attname as \"column\", \
      n.nspname as schema, s.relname as name, q.seqincrement as increment \
    from (select d.refobjid as relation, d.refobjsubid as number, d.objid as sequence \
            from pg_depend d where d.classid = 'pg_class'::regclass \
              and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') and d.refobjsubid > 0 \
          union select f.adrelid, f.adnum, d.refobjid from pg_attrdef f join pg_depend d \
            on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid \
              and d.refclassid = 'pg_class'::regclass) x \
      join pg_class s on s.oid = x.sequence and s.relkind = 'S' \
      join pg_sequence q on q.seqrelid = s.oid \
      join pg_namespace n on n.oid = s.relnamespace \
      join pg_attribute a on a.attrelid = x.relation and a.attnum = x.number \
        and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)";

const PUBLISHED: &str = "select c.oid::int8 as relation, p.pubname as publication, \
      p.pubupdate as updates, p.pubdelete as deletes \
    from pg_publication_tables t join pg_publication p on p.pubname = t.pubname \
      join pg_namespace n on n.nspname = t.schemaname \
      join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename";

const SLOTS: &str = "select slot_name::text as name from pg_replication_slots \
    where slot_type = 'logical' and database = current_database() order by 1";

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl CatalogRows {
    /// Reads the catalogs. The session must have `search_path = ''`, so that types come out qualified.
    pub(crate) async fn read(connection: &mut PgConnection) -> Result<Self, TenantError> {
        let slots: Vec<Named> = sql::json(connection, SLOTS, "listing replication slots").await?;
        Ok(Self {
            relations: sql::json(connection, RELATIONS, "listing tables").await?,
            columns: sql::json(connection, COLUMNS, "listing columns").await?,
            indexes: sql::json(connection, INDEXES, "listing unique indexes").await?,
            foreign_keys: sql::json(connection, FOREIGN_KEYS, "listing foreign keys").await?,
            deferrables: sql::json(connection, DEFERRABLES, "listing deferrable constraints")
                .await?,
            firing: sql::json(connection, FIRING, "listing triggers").await?,
            sequences: sql::json(connection, SEQUENCES, "listing sequences").await?,
            published: sql::json(connection, PUBLISHED, "listing publications").await?,
            slots: slots.into_iter().map(|slot| slot.name).collect(),
        })
    }

    pub(crate) fn relation(&self, oid: Oid) -> Option<&Relation> {
        self.relations.iter().find(|relation| relation.oid == oid)
    }

    pub(crate) fn by_name(&self, name: &TableName) -> Option<&Relation> {
        self.relations
            .iter()
            .find(|relation| relation.name == *name)
    }

    /// The table itself, or the topmost table that a partition belongs to.
    pub(crate) fn root_of(&self, oid: Oid) -> Oid {
        self.relation(oid)
            .and_then(|relation| relation.root)
            .unwrap_or(oid)
    }

    pub(crate) fn columns_of(&self, oid: Oid) -> impl Iterator<Item = &Column> {
        self.columns
            .iter()
            .filter(move |column| column.relation == oid)
    }

    pub(crate) fn column(&self, oid: Oid, name: &str) -> Option<&Column> {
        self.columns_of(oid).find(|column| column.name == name)
    }

    /// A table with all its partitions.
    pub(crate) fn family(&self, root: Oid) -> BTreeSet<Oid> {
        self.relations
            .iter()
            .filter(|relation| relation.oid == root || relation.root == Some(root))
            .map(|relation| relation.oid)
            .collect()
    }

    /// Names by oid, for messages.
    pub(crate) fn names(&self) -> BTreeMap<Oid, String> {
        self.relations
            .iter()
            .map(|relation| (relation.oid, relation.name.to_string()))
            .collect()
    }
}
