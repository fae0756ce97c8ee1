//! The row side between two databases of one private server: `live`, and `then`, a copy of it made at
//! the target. Every comparison is plain SQL of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dr_config::{Names, TenancyConfig, TenantHooks, TenantTable};
use dr_model::Silent;
use dr_sources::instance::{InitdbOptions, PostgresInstance, RunAs, StartOptions, free_port, give};

use super::*;

mod beside;
mod erp;
mod faults;
mod judge;
mod meanwhile;
mod models;
mod others;
mod outcome;
mod property;
mod schemas;
mod strays;
mod surroundings;
mod take_back;
mod take_out;
mod wild;
mod work;

struct Bench {
    server: Option<PostgresInstance>,
    folder: tempfile::TempDir,
    tenancy: TenancyConfig,
    /// The tenant whose the database `live` is.
    only: Option<&'static str>,
    /// Tables with the SQL condition for tenant `$`.
    own: BTreeMap<String, String>,
}

fn tenancy(column: &str, tables: &[(&str, TenantTable)]) -> TenancyConfig {
    TenancyConfig {
        model: None,
        column: Names(vec![column.to_owned()]),
        tenants: None,
        shared_ids: Vec::new(),
        tables: tables
            .iter()
            .map(|(name, class)| ((*name).to_owned(), class.clone()))
            .collect(),
        path: None,
        hooks: TenantHooks::default(),
    }
}

/// Every foreign key with the query that counts rows without a parent.
const FOREIGN_KEYS: &str = "select con.conname::text, format( \
      'select count(*) from %s c where %s and not exists (select from %s p where %s)', \
      (case c.relkind when 'p' then '' else 'only ' end) || c.oid::regclass::text, \
      (select string_agg(format('c.%I is not null', a.attname), ' and ') from unnest(con.conkey) k(n) \
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.n), \
      (case p.relkind when 'p' then '' else 'only ' end) || p.oid::regclass::text, \
      (select string_agg(format('p.%I = c.%I', b.attname, a.attname), ' and ') \
        from unnest(con.conkey, con.confkey) k(n, m) \
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.n \
        join pg_attribute b on b.attrelid = p.oid and b.attnum = k.m)) \
    from pg_constraint con join pg_class c on c.oid = con.conrelid join pg_class p on p.oid = con.confrelid \
    where con.contype = 'f' and con.conparentid = 0";

impl Bench {
    fn start(tenancy: TenancyConfig, conditions: &[(&'static str, &'static str)]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-tenant-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        let bin = dr_sources::postgres::tools::bin_directory(None, 15).unwrap();
        let data = folder.path().join("data");
        PostgresInstance::initdb(&InitdbOptions::new(&bin, &data, run_as.clone())).unwrap();
        let mut options = StartOptions::new(&bin, &data, run_as, free_port());
        options.settings = vec![("fsync".to_owned(), "off".to_owned())];
        let server = PostgresInstance::start(options).unwrap();
        Self {
            server: Some(server),
            folder,
            tenancy,
            only: None,
            own: conditions
                .iter()
                .map(|(table, own)| ((*table).to_owned(), (*own).to_owned()))
                .collect(),
        }
    }

    fn options(&self, database: &str) -> ConnectOptions {
        ConnectOptions {
            url: self.server.as_ref().unwrap().url(database),
            password: None,
        }
    }

    async fn connect(&self, database: &str) -> PgConnection {
        dr_sources::postgres::connect(&self.options(database))
            .await
            .unwrap()
    }

    async fn sql(&self, database: &str, statements: &str) {
        let mut connection = self.connect(database).await;
        sql::run(&mut connection, statements, statements)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        connection.close().await.unwrap();
    }

    async fn value(&self, database: &str, query: &str) -> i64 {
        let mut connection = self.connect(database).await;
        sql::value(&mut connection, query, query)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Keeps the present state of `live` as database `name`.
    async fn keep(&self, name: &str) {
        self.sql("postgres", &format!("create database {name} template live"))
            .await;
    }

    /// A digest of each table: of the tenant's rows, or of everybody else's.
    async fn digests(&self, database: &str, tenant: &str, own: bool) -> BTreeMap<String, String> {
        let mut connection = self.connect(database).await;
        let mut digests = BTreeMap::new();
        for (table, condition) in &self.own {
            let condition = condition.replace('$', tenant);
            let query = format!(
                "select count(*) || ' rows ' || coalesce(md5(string_agg(t::text, '|' order by t::text collate \"C\")), '') \
                 from {table} t where ({condition}) is {}",
                if own { "true" } else { "not true" }
            );
            digests.insert(
                table.clone(),
                sql::value(&mut connection, &query, table.to_string())
                    .await
                    .unwrap(),
            );
        }
        digests
    }

    /// Rows without a parent, over all foreign keys.
    async fn orphans(&self) -> Vec<String> {
        let mut connection = self.connect("live").await;
        let keys = sql::rows(&mut connection, FOREIGN_KEYS, "listing foreign keys")
            .await
            .unwrap();
        let mut orphans = Vec::new();
        for key in &keys {
            let name: String = sql::column(key, 0).unwrap();
            let query: String = sql::column(key, 1).unwrap();
            let count: i64 = sql::value(&mut connection, &query, query.clone())
                .await
                .unwrap();
            if count > 0 {
                orphans.push(format!("{name}: {count}"));
            }
        }
        orphans
    }

    async fn tenancy_map(&self) -> TenancyMap {
        let mut live = session(&self.options("live"), "live").await.unwrap();
        complete(
            map(
                &mut live,
                &"erp".parse().unwrap(),
                &self.tenancy,
                &self.owners().await,
            )
            .await
            .unwrap(),
        )
        .unwrap()
    }

    fn work(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        for part in ["db", "lo"] {
            recreate(&folder.join(part)).unwrap();
        }
        folder
    }

    /// What is wholly one tenant's; a database if it is given up to one.
    async fn owners(&self) -> Owners {
        if let Some(only) = &self.only {
            return Owners {
                database: Some((*only).to_owned()),
                ..Owners::default()
            };
        }
        match &self.tenancy.tenants {
            Some(query) => {
                let all = crate::tenants::list(&self.options("live"), query, "live").await;
                Owners::of(&all.unwrap())
            }
            None => Owners::default(),
        }
    }

    async fn tenant(&self, id: &str) -> Tenant {
        let plain = Tenant {
            id: id.to_owned(),
            name: "T".to_owned(),
            others: BTreeMap::new(),
        };
        let Some(query) = &self.tenancy.tenants else {
            return plain;
        };
        let all = crate::tenants::list(&self.options("live"), query, "live").await;
        let mut all = all.unwrap().into_iter();
        all.find(|tenant| tenant.id == id).unwrap_or(plain)
    }

    async fn compare(&self, tenant: &str, mode: Mode) -> (TenancyMap, Compared) {
        let map = self.tenancy_map().await;
        let tenant = self.tenant(tenant).await;
        let (live, scratch) = (self.options("live"), self.options("then_"));
        let subject = Subject {
            live: &live,
            scratch: &scratch,
            map: &map,
            tenant: &tenant,
            mode,
            filter: &Filter::default(),
            on_conflict: OnConflict::Abort,
        };
        let id = TenantRestoreId::new(Utc::now());
        let compared = compare(
            &subject,
            &id,
            &self.work("spool"),
            Utc::now(),
            &Silent,
            &CancellationToken::new(),
        )
        .await
        .unwrap_or_else(|e| panic!("{e:?}"));
        (map, compared)
    }

    async fn write(
        &self,
        map: &TenancyMap,
        set: &ChangeSet,
        spool: &str,
        save: &str,
        direction: Direction,
    ) -> Result<Committed, TenantError> {
        self.write_held(map, set, (spool, save), direction, None)
            .await
    }

    async fn write_held(
        &self,
        map: &TenancyMap,
        set: &ChangeSet,
        (spool, save): (&str, &str),
        direction: Direction,
        held: Option<Held>,
    ) -> Result<Committed, TenantError> {
        let owner = Ownership {
            map,
            tenant: &set.tenant,
        };
        let (spool, save) = (self.folder.path().join(spool), self.work(save));
        let folders = Folders {
            spool: &spool,
            save: &save,
        };
        let live = Live {
            options: &self.options("live"),
            cancel: &CancellationToken::new(),
            writing: &Writing::default(),
        };
        let result = write(
            live,
            &owner,
            set,
            folders,
            direction,
            held,
            async |_| Ok(()),
        )
        .await;
        set.write(&save).unwrap();
        result
    }

    /// Compares, writes, and checks the report's own lines.
    async fn restore(&self, tenant: &str) -> Compared {
        let (map, compared) = self.compare(tenant, Mode::Replace).await;
        assert_eq!(compared.refused, Vec::<String>::new());
        let committed = self
            .write(&map, &compared.set, "spool", "saved", Direction::Forward)
            .await
            .unwrap_or_else(|e| panic!("{e} {e:?}"));
        self.prove(&map, &compared.set, &committed).await;
        compared
    }

    /// The report's own lines agree.
    async fn prove(&self, map: &TenancyMap, set: &ChangeSet, committed: &Committed) {
        let (live, scratch) = (self.options("live"), self.options("then_"));
        let subject = Subject {
            live: &live,
            scratch: &scratch,
            map,
            tenant: &set.tenant,
            mode: Mode::Replace,
            filter: &Filter::default(),
            on_conflict: OnConflict::Abort,
        };
        let (again, _) = look_again(&subject, set, committed).await.unwrap();
        assert_eq!(again.outcome, ProofOutcome::Agrees, "{again:?}");
        let data = self.folder.path().join("data");
        let wal = wal_agrees(&live, &data, None, committed).await.unwrap();
        assert_eq!(wal.outcome, ProofOutcome::Agrees, "{wal:?}");
    }

    async fn undo(&self, tenant: &str) {
        let map = self.tenancy_map().await;
        let set = ChangeSet::read(&self.folder.path().join("saved")).unwrap();
        assert_eq!(set.tenant.id, tenant);
        let reversed = set.reversed(TenantRestoreId::new(Utc::now()));
        self.write(&map, &reversed, "saved", "saved-undo", Direction::Reverse)
            .await
            .unwrap_or_else(|e| panic!("{e} {e:?}"));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server
                .stop(dr_sources::instance::StopMode::Immediate)
                .unwrap();
        }
    }
}
