//! Schemas that nobody designed for this: every way in which a row can be a tenant's, and rows that are not.

use dr_config::{DirectBy, Names, OtherId, Polymorphic, ViaBy};

use super::*;
use crate::map::TableClass;

/// Tables with the SQL condition for tenant `$`.
const WILD: [(&str, &str); 18] = [
    ("app.company", "company_id = $"),
    ("app.site", "\"TenantId\" = $"),
    ("app.price", "company_id = $"),
    (
        "app.ledger",
        "company_code = (select code from app.company where company_id = $)",
    ),
    (
        "app.entry",
        "code = (select code from app.company where company_id = $)",
    ),
    ("app.tag", "false"),
    (
        "app.site_tag",
        "site_id in (select id from app.site where \"TenantId\" = $)",
    ),
    ("app.comment", COMMENT),
    (
        "app.reaction",
        "comment_id in (select id from app.comment where about_kind = 'site' and about_id in \
            (select id::text from app.site where \"TenantId\" = $) or about_kind = 'price' and about_id in \
            (select id::text from app.price where company_id = $))",
    ),
    ("app.node", "\"TenantId\" = $"),
    ("app.head", "\"TenantId\" = $"),
    (
        "app.part",
        "head_id in (select id from app.head where \"TenantId\" = $)",
    ),
    ("app.log", "company_id = $"),
    ("app.measure", "company_id = $"),
    ("only app.document", "company_id = $"),
    ("app.contract", "company_id = $"),
    (
        "app.file",
        "owner = (select uid from app.company where company_id = $)",
    ),
    ("app.route", "company_id = '$'"),
];
const COMMENT: &str = "about_kind = 'site' and about_id in (select id::text from app.site where \"TenantId\" = $) \
    or about_kind = 'price' and about_id in (select id::text from app.price where company_id = $)";

/// Bad statements over every table of tenant 2.
const MISTAKE: &str = "begin; set constraints all deferred;
delete from app.reaction where comment_id in (select id from app.comment where about_kind = 'site'
    and about_id in (select id::text from app.site where \"TenantId\" = 2));
delete from app.comment where about_kind = 'site' and about_id in
    (select id::text from app.site where \"TenantId\" = 2 and id % 2 = 0);
update app.comment set body = upper(body) where about_kind = 'price' and about_id in
    (select id::text from app.price where company_id = 2);
delete from app.site_tag where site_id in (select id from app.site where \"TenantId\" = 2);
update app.node set site_id = null where \"TenantId\" = 2;
delete from app.site where \"TenantId\" = 2 and id % 4 = 0;
update app.site set name = 'lost' where \"TenantId\" = 2;
insert into app.site (\"TenantId\", name) values (2, 'new');
delete from app.reaction where comment_id in (select id from app.comment where about_kind = 'price'
    and about_id in (select id::text from app.price where company_id = 2 and id % 3 = 0));
delete from app.comment where about_kind = 'price' and about_id in
    (select id::text from app.price where company_id = 2 and id % 3 = 0);
delete from app.price where company_id = 2 and id % 3 = 0;
delete from app.entry where code = 'BOLT' and (no % 2 = 0 or no % 5 = 0);
update app.entry set what = null where code = 'BOLT';
delete from app.ledger where company_code = 'BOLT' and no % 5 = 0;
insert into app.ledger values ('BOLT', 900, 1);
insert into app.entry values ('BOLT', 900, 1, 'new');
update app.node set parent = null where \"TenantId\" = 2;
delete from app.node where \"TenantId\" = 2 and name like 'leaf%';
delete from app.part where head_id in (select id from app.head where \"TenantId\" = 2);
delete from app.head where \"TenantId\" = 2;
delete from app.log where company_id = 2 and said = 'said 1';
insert into app.log values ('eve', 2, 'said 1'), ('eve', 2, 'said 1');
update app.measure set at = at + 60 where company_id = 2 and id % 2 = 0 and at < '2026-08-01';
delete from app.measure where company_id = 2 and id % 5 = 0;
delete from only app.document where company_id = 2;
update app.contract set ends = null where company_id = 2;
delete from app.file where owner = '22222222-2222-2222-2222-222222222222' and size > 3;
update app.route set name = '' where company_id = '2';
commit;";

/// What everybody else goes on with.
const OTHERS: &str = "insert into app.price (company_id, amount) values (1, 9), (null, 9), (0, 9);
insert into app.comment (about_kind, about_id, body) select 'site', id, 'later' from app.site where \"TenantId\" = 3;
update app.tag set label = label || '!'; delete from app.ledger where company_code = 'CRUX' and no = 3;";

fn to(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(owned).collect()
}

fn other_id(column: &str, id: &str) -> TenantTable {
    TenantTable::Direct(DirectBy::OtherId(OtherId {
        column: column.to_owned(),
        id: id.to_owned(),
    }))
}

fn declared() -> Vec<(&'static str, TenantTable)> {
    let entry = to(&[("code", "app.ledger.company_code"), ("no", "app.ledger.no")]);
    vec![
        ("app.tag", TenantTable::Shared),
        ("app.ledger", other_id("company_code", "code")),
        ("app.file", other_id("owner", "uid")),
        ("app.entry", TenantTable::Via(ViaBy::Columns(entry))),
        (
            "app.comment",
            TenantTable::Polymorphic(Polymorphic {
                kind: "about_kind".to_owned(),
                id: "about_id".to_owned(),
                to: to(&[("site", "app.site.id"), ("price", "app.price.id")]),
            }),
        ),
    ]
}

fn wild(declared: &[(&str, TenantTable)]) -> TenancyConfig {
    TenancyConfig {
        column: Names(vec!["company_id".to_owned(), "TenantId".to_owned()]),
        tenants: Some("select company_id as id, name, code, uid from app.company".to_owned()),
        shared_ids: vec!["0".to_owned()],
        ..tenancy("", declared)
    }
}

async fn bench() -> Bench {
    let bench = Bench::start(wild(&declared()), &WILD);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", include_str!("wild.sql")).await;
    bench
}

async fn raw_map(bench: &Bench, tenancy: &TenancyConfig) -> Result<TenancyMap, TenantError> {
    let mut live = session(&bench.options("live"), "live").await?;
    map(
        &mut live,
        &"erp".parse().unwrap(),
        tenancy,
        &Owners::default(),
    )
    .await
}

#[tokio::test]
async fn every_way_to_belong_to_a_tenant_is_put_back_and_nothing_else() {
    let bench = bench().await;
    bench.keep("then_").await;
    bench.sql("live", OTHERS).await;
    bench.sql("live", MISTAKE).await;
    bench.keep("before").await;
    let then = bench.digests("then_", "2", true).await;
    let before = bench.digests("before", "2", true).await;
    let others = bench.digests("before", "2", false).await;
    for (table, digest) in &then {
        let same = digest == &before[table];
        assert_eq!(
            same,
            ["app.company", "app.tag"].contains(&table.as_str()),
            "{table}"
        );
    }
    bench.restore("2").await;
    assert_eq!(bench.digests("live", "2", true).await, then);
    assert_eq!(bench.digests("live", "2", false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
    bench.undo("2").await;
    assert_eq!(bench.digests("live", "2", true).await, before);
    assert_eq!(bench.digests("live", "2", false).await, others);
    bench.restore("2").await;
    assert_eq!(bench.digests("live", "2", true).await, then);
    let (_, nothing) = bench.compare("2", Mode::Replace).await;
    assert!(!nothing.set.has_rows());
}

#[tokio::test]
async fn what_the_catalogs_do_not_say_has_to_be_declared_and_is_not_guessed() {
    let bench = bench().await;
    let map = raw_map(&bench, &wild(&[])).await.unwrap();
    let open: Vec<String> = map
        .unclassified()
        .map(|(mapped, _)| mapped.table.to_string())
        .collect();
    // A reaction hangs on a comment, and nobody knows whose that is.
    let expected = ["comment", "entry", "file", "ledger", "reaction", "tag"];
    assert_eq!(open, expected.map(|name| format!("app.{name}")));
    let (classified, all) = map.coverage();
    assert_eq!((classified, all), (all - 6, 18));

    // Once declared, the whole map can be, and then it stays as it is.
    let map = raw_map(&bench, &bench.tenancy).await.unwrap();
    assert_eq!(map.unclassified().count(), 0, "{map}");
    let text = map.declarations();
    let pasted: serde_json::Value = serde_json::to_value(
        map.tables
            .iter()
            .map(|mapped| mapped.table.to_string())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    for table in pasted.as_array().unwrap() {
        assert!(text.contains(table.as_str().unwrap()), "{table} in {text}");
    }
    assert_eq!(map.undeclared().count(), 13);
    for line in [
        "    app.site: { direct: TenantId }",
        "    app.site_tag: { via: site_tag_site_id_fkey }",
        "    app.entry: { via: { code: app.ledger.company_code, \"no\": app.ledger.no } }",
        "    app.file: { direct: { column: owner, id: uid } }",
        "    app.comment: { polymorphic: { type: about_kind, id: about_id, to: { price: app.price.id, site: app.site.id } } }",
        "    app.tag: shared",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_column_that_can_hold_no_tenants_id_only_has_the_name() {
    let bench = bench().await;
    let table = "create table app.visit (id int primary key, company_id uuid)";
    bench.sql("live", table).await;
    let mut live = session(&bench.options("live"), "live").await.unwrap();
    let mut reason = async |owners: Owners| {
        let name = "erp".parse().unwrap();
        let map = map(&mut live, &name, &bench.tenancy, &owners)
            .await
            .unwrap();
        let mut found = map
            .unclassified()
            .map(|(m, why)| (m.table.to_string(), why.to_owned()));
        let open = found.next();
        assert_eq!(found.next(), None);
        open
    };
    let (open, why) = reason(bench.owners().await).await.unwrap();
    assert_eq!(open, "app.visit");
    assert!(why.contains("of type uuid, and no tenant's id is"), "{why}");
    // Where there is no tenant yet, the name has to do.
    assert_eq!(reason(Owners::default()).await, None);
}

#[tokio::test]
async fn declarations_that_do_not_fit_say_why() {
    let bench = bench().await;
    let via = |pairs: &[(&str, &str)]| TenantTable::Via(ViaBy::Columns(to(pairs)));
    let reason = async |table: &'static str, class: TenantTable| {
        let mut all = declared();
        all.retain(|(name, _)| *name != table);
        all.push((table, class));
        let map = raw_map(&bench, &wild(&all)).await.unwrap();
        let mut found = map.unclassified();
        let found = found.find(|(mapped, _)| mapped.table.to_string() == table);
        found
            .map(|(_, reason)| reason.to_owned())
            .unwrap_or_default()
    };
    let said = reason("app.entry", via(&[("code", "app.ledger.company_code")])).await;
    assert_eq!(
        said,
        "app.ledger has no unique index on company_code: more than one row could be meant"
    );
    let said = reason("app.entry", via(&[("cod", "app.ledger.company_code")])).await;
    assert_eq!(said, "app.entry has no column cod");
    let said = reason("app.entry", via(&[("code", "app.legder.company_code")])).await;
    assert!(said.contains("there is no such table"), "{said}");
    let said = reason("app.entry", via(&[("no", "app.tag.tag_id")])).await;
    assert!(said.contains("belongs to no tenant"), "{said}");
    let said = reason("app.file", other_id("onwer", "uid")).await;
    assert!(said.contains("has no column onwer"), "{said}");
    // Two columns that could both be the tenant's.
    bench
        .sql("live", "alter table app.site add company_id bigint")
        .await;
    let said = reason("app.tag", TenantTable::Shared).await;
    assert_eq!(said, "");
    let map = raw_map(&bench, &bench.tenancy).await.unwrap();
    let site = map.unclassified().find(|(m, _)| m.table.name == "site");
    let (mapped, said) = site.unwrap();
    assert!(said.contains("company_id, TenantId"), "{said}");
    let TableClass::Unclassified { choices, .. } = &mapped.class else {
        panic!("{mapped:?}")
    };
    assert_eq!(choices, &["{ direct: company_id }", "{ direct: TenantId }"]);
}

#[tokio::test]
async fn a_tenant_without_one_of_its_ids_is_refused() {
    let mut tenancy = wild(&declared());
    tenancy.tenants = Some("select company_id as id, name, code from app.company".to_owned());
    let bench = Bench::start(tenancy, &WILD);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", include_str!("wild.sql")).await;
    bench.keep("then_").await;
    let (_, compared) = bench.compare("2", Mode::Replace).await;
    assert!(
        compared.refused[0].contains("app.file knows tenants by their `uid`"),
        "{:?}",
        compared.refused
    );
}

#[tokio::test]
async fn rows_are_counted_and_a_column_that_disagrees_with_a_foreign_key_is_told() {
    let bench = bench().await;
    let counted = async || {
        let map = raw_map(&bench, &bench.tenancy).await.unwrap();
        let mut live = session(&bench.options("live"), "live").await.unwrap();
        crate::row_counts::count(&mut live, &bench.tenancy, &map)
            .await
            .unwrap()
    };
    let counts = counted().await;
    assert_eq!(counts.disagreements, []);
    let of = |name: &str| {
        let table = counts.tables.iter().find(|t| t.table == name).unwrap();
        (table.rows, table.nobodys, table.shared)
    };
    assert_eq!(of("app.price"), (150, 30, 30));
    assert_eq!(of("app.site"), (80, 0, 20));
    // One is about something that is no table here.
    assert_eq!(of("app.comment").1, 1);
    bench
        .sql(
            "live",
            "update app.node set site_id = (select min(id) from app.site where \"TenantId\" = 3)
             where \"TenantId\" = 1 and name = 'root'",
        )
        .await;
    let counts = counted().await;
    let [only] = counts.disagreements.as_slice() else {
        panic!("{counts}")
    };
    assert_eq!((only.table.as_str(), only.rows), ("app.node", 1));
    assert_eq!(only.example, "of 1, refers to one of 3");
    assert!(
        counts
            .to_string()
            .contains("1 rows of app.node refer to another tenant's row")
    );
}
