//! The schemas, and whose the rows of their tables are: written down here by hand, as SQL, so that the
//! product's own map is not what it is judged by.

/// Whose the rows of a table are. `$T` is the tenant's id and `$N` its second one, both as SQL.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// Of the tenant that a column names.
    Column(&'static str, &'static str),
    /// Of the tenant among whose values, by a query, is that of a column.
    Reached(&'static str, &'static str),
    /// Of the tenant for which this holds, over row `t`.
    Rows(&'static str),
    /// All of them, of the tenant whose the database is.
    All,
    /// No tenant's.
    Everyones,
}

/// One public schema.
#[derive(Debug)]
pub(super) struct Public {
    /// The folder with its `load.sql`, and the name of its YAML below `docs/schemas`.
    pub(super) name: &'static str,
    /// Of tables that are not named below.
    pub(super) usual: Whose,
    /// Of those that are.
    pub(super) tables: &'static [(&'static str, Whose)],
    /// Those that list the tenants.
    pub(super) registry: &'static [&'static str],
    /// Makes a tenant; a database of its own where there is nothing to be said.
    pub(super) make: &'static str,
    /// Ids, and second ids or names.
    pub(super) tenants: [(&'static str, &'static str); 5],
}

impl Public {
    pub(super) fn whose(&self, table: &str) -> Whose {
        let named = self.tables.iter().find(|(name, _)| *name == table);
        named.map_or(self.usual, |(_, whose)| *whose)
    }

    /// A database each.
    pub(super) fn is_apart(&self) -> bool {
        self.make.is_empty()
    }
}

use Whose::{All, Column, Everyones, Reached, Rows};

/// The names of a tenant's SIP domains.
const DOMAINS: &str = "select domain from domain where did = $T";

pub(super) static KAMAILIO: Public = Public {
    name: "kamailio",
    usual: Reached("domain", DOMAINS),
    tables: &[
        ("domain", Column("did", "$T")),
        ("domain_attrs", Column("did", "$T")),
        ("uid_credentials", Column("did", "$T")),
        ("uid_domain", Column("did", "$T")),
        ("uid_domain_attrs", Column("did", "$T")),
        ("uid_uri", Column("did", "$T")),
        ("uid_uri_attrs", Column("did", "$T")),
        ("acc", Reached("src_domain", DOMAINS)),
        ("missed_calls", Reached("dst_domain", DOMAINS)),
        ("active_watchers", Reached("to_domain", DOMAINS)),
        ("watchers", Reached("watcher_domain", DOMAINS)),
        ("rls_watchers", Reached("watcher_domain", DOMAINS)),
        ("uacreg", Reached("l_domain", DOMAINS)),
        ("carrierroute", Everyones),
        ("carrierfailureroute", Everyones),
        ("domain_name", Everyones),
        ("address", Everyones),
        ("carrier_name", Everyones),
        ("dialplan", Everyones),
        ("dispatcher", Everyones),
        ("domainpolicy", Everyones),
        ("dr_gateways", Everyones),
        ("dr_gw_lists", Everyones),
        ("dr_rules", Everyones),
        ("globalblocklist", Everyones),
        ("lcr_gw", Everyones),
        ("lcr_rule", Everyones),
        ("lcr_rule_target", Everyones),
        ("matrix", Everyones),
        ("mohqueues", Everyones),
        ("mtree", Everyones),
        ("mtrees", Everyones),
        ("pl_pipes", Everyones),
        ("re_grp", Everyones),
        ("rtpengine", Everyones),
        ("rtpproxy", Everyones),
        ("secfilter", Everyones),
        ("trusted", Everyones),
        ("uid_global_attrs", Everyones),
        ("version", Everyones),
        ("acc_cdrs", Everyones),
        ("dialog", Everyones),
        ("dialog_vars", Everyones),
        ("htable", Everyones),
        ("mohqcalls", Everyones),
        ("pua", Everyones),
        ("rls_presentity", Everyones),
        ("sca_subscriptions", Everyones),
        ("sip_trace", Everyones),
        ("topos_d", Everyones),
        ("topos_t", Everyones),
        ("purplemap", Everyones),
        ("uid_user_attrs", Everyones),
    ],
    registry: &["domain"],
    make: "insert into domain (did, domain) values ($T, $N), ($T, 'also.' || $N)",
    tenants: [
        ("acme", "acme.example"),
        ("birch", "birch.example"),
        ("cedar", "cedar.example"),
        ("delta", "delta.example"),
        ("elm", "elm.example"),
    ],
};

pub(super) static VMM: Public = Public {
    name: "vmm",
    usual: Column("gid", "$T"),
    tables: &[
        (
            "userquota",
            Rows("t.uid in (select uid from users where gid = $T)"),
        ),
        ("mailboxformat", Everyones),
        ("maillocation", Everyones),
        ("quotalimit", Everyones),
        ("service_set", Everyones),
        ("transport", Everyones),
    ],
    registry: &["domain_data", "domain_name"],
    make: "insert into domain_data (gid, domaindir) values ($T, '/srv/mail/' || $T);
        insert into domain_name (domainname, gid, is_primary) values ($N, $T, true)",
    tenants: [
        ("70001", "acme.example"),
        ("70002", "birch.example"),
        ("70003", "cedar.example"),
        ("70004", "delta.example"),
        ("70005", "elm.example"),
    ],
};

pub(super) static LOGTO: Public = Public {
    name: "logto",
    usual: Column("tenant_id", "$T"),
    tables: &[("tenants", Column("id", "$T")), ("systems", Everyones)],
    registry: &["tenants"],
    make: "insert into tenants (id, name, db_user) values ($T, $N, 'user_' || $T)",
    tenants: [
        ("acme", "Acme"),
        ("birch", "Birch"),
        ("cedar", "Cedar"),
        ("delta", "Delta"),
        ("elm", "Elm"),
    ],
};

pub(super) static ICINGADB: Public = Public {
    name: "icingadb",
    usual: Column("environment_id", "$T"),
    tables: &[
        ("environment", Column("id", "$T")),
        ("icingadb_schema", Everyones),
    ],
    registry: &["environment"],
    make: "insert into environment (id, name) values ($T, $N)",
    tenants: [
        ("\\xaa00000000000000000000000000000000000001", "acme"),
        ("\\xaa00000000000000000000000000000000000002", "birch"),
        ("\\xaa00000000000000000000000000000000000003", "cedar"),
        ("\\xaa00000000000000000000000000000000000004", "delta"),
        ("\\xaa00000000000000000000000000000000000005", "elm"),
    ],
};

pub(super) static LEDGERSMB: Public = Public {
    name: "ledgersmb",
    usual: All,
    tables: &[],
    registry: &[],
    make: "",
    tenants: [
        ("books_acme", ""),
        ("books_birch", ""),
        ("books_cedar", ""),
        ("books_delta", ""),
        ("books_elm", ""),
    ],
};
