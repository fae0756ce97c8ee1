//! What can be wrong with the tenant, the schema, the rights and the connection: nothing is written, or all is.

use super::erp::MISTAKE;
use super::*;

/// What a restore of tenant 3 is refused for.
async fn refused(bench: &Bench) -> Vec<String> {
    bench.compare("3", Mode::Replace).await.1.refused
}

/// The error of a restore of tenant 3, which must have changed nothing.
async fn fails(bench: &Bench) -> TenantError {
    let before = bench.digests("live", "3", true).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    assert_eq!(compared.refused, Vec::<String>::new());
    let written = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await;
    let error = written.unwrap_err();
    assert_eq!(bench.digests("live", "3", true).await, before, "{error}");
    error
}

#[track_caller]
fn says(lines: &[String], words: &[&str]) {
    assert!(
        lines
            .iter()
            .any(|line| words.iter().all(|word| line.contains(word))),
        "{words:?} in {lines:#?}"
    );
}

#[tokio::test]
async fn rows_that_two_tenants_swapped_are_refused_by_key() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    let swap = "update outbox set tenant_id = 7 - tenant_id where tenant_id in (3, 4)";
    bench.sql("live", swap).await;
    says(&refused(&bench).await, &["public.outbox", "another tenant"]);
}

#[tokio::test]
async fn a_column_of_a_wider_type_takes_the_values_of_then() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    let then = bench.digests("then_", "3", true).await;
    bench.sql("live", MISTAKE).await;
    bench
        .sql(
            "live",
            "alter table order_line alter column line_no type bigint;
             alter table customer alter column customer_no type varchar(200)",
        )
        .await;
    let (_, compared) = bench.compare("3", Mode::Replace).await;
    says(
        &compared.warnings,
        &["public.order_line.line_no", "integer", "bigint", "cast"],
    );
    bench.restore("3").await;
    assert_eq!(bench.digests("live", "3", true).await, then);
}

#[tokio::test]
async fn a_column_of_a_type_that_does_not_hold_the_values_is_refused() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "alter table customer alter column name type varchar(3) using left(name, 3);
             alter table item alter column price type integer;
             alter table item alter column updated_at type text",
        )
        .await;
    let lines = refused(&bench).await;
    says(
        &lines,
        &[
            "public.customer.name",
            "character varying(3)",
            "would be others",
        ],
    );
    says(&lines, &["public.item.updated_at", "is text now"]);
}

#[tokio::test]
async fn a_column_that_was_dropped_is_told_and_the_others_return() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "alter table item drop column weight_kg; update item set price = price + 1 where tenant_id = 3",
        )
        .await;
    let (_, compared) = bench.compare("3", Mode::Replace).await;
    says(
        &compared.warnings,
        &["public.item.weight_kg", "dropped", "do not return"],
    );
    bench.restore("3").await;
    let sum = "select sum(price * 100)::bigint from item where tenant_id = 3";
    assert_eq!(
        bench.value("live", sum).await,
        bench.value("then_", sum).await
    );
}

#[tokio::test]
async fn constraints_that_cannot_hold_are_named() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql("live", "delete from setting where tenant_id = 3")
        .await;
    let checked = "alter table setting add constraint only_others check (tenant_id <> 3) not valid";
    bench.sql("live", checked).await;
    let error = format!("{:?}", fails(&bench).await);
    assert!(error.contains("only_others"), "{error}");
    bench
        .sql(
            "live",
            "alter table setting drop constraint only_others;
             alter table setting add column owner text; update setting set owner = 'x';
             alter table setting alter column owner set not null",
        )
        .await;
    let error = format!("{:?}", fails(&bench).await);
    assert!(error.contains("owner"), "{error}");
    bench
        .sql("live", "alter table setting drop column owner")
        .await;
    bench.restore("3").await;
}

#[tokio::test]
async fn a_role_without_the_rights_is_told_the_grant() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    bench
        .sql(
            "live",
            "create role clerk login; grant usage on schema public to clerk;
             grant select on all tables in schema public to clerk",
        )
        .await;
    let before = bench.digests("live", "3", true).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let live = ConnectOptions {
        url: bench.options("live").url.replacen("postgres@", "clerk@", 1),
        password: None,
    };
    assert!(live.url.contains("clerk@"), "{}", live.url);
    let owner = Ownership {
        map: &map,
        tenant: &compared.set.tenant,
    };
    let (spool, save) = (bench.folder.path().join("spool"), bench.work("saved"));
    let folders = Folders {
        spool: &spool,
        save: &save,
    };
    let (cancel, stored) = (CancellationToken::new(), async |_| Ok(()));
    let live = Live {
        options: &live,
        cancel: &cancel,
        writing: &Writing::default(),
    };
    let written = write(
        live,
        &owner,
        &compared.set,
        folders,
        Direction::Forward,
        None,
        stored,
    );
    let error = written.await.unwrap_err();
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("session_replication_role"),
        "{error:?} {hint}"
    );
    assert_eq!(bench.digests("live", "3", true).await, before);
}

#[tokio::test]
async fn a_session_that_ends_between_the_last_check_and_the_commit_changed_nothing() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let then = bench.digests("then_", "3", true).await;
    let before = bench.digests("live", "3", true).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let owner = Ownership {
        map: &map,
        tenant: &compared.set.tenant,
    };
    let (spool, save) = (bench.folder.path().join("spool"), bench.work("saved"));
    let folders = Folders {
        spool: &spool,
        save: &save,
    };
    let (live, cancel) = (bench.options("live"), CancellationToken::new());
    let end_it = async |_| {
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where state = 'idle in transaction' and backend_xid is not null";
        bench.sql("postgres", end).await;
        Ok(())
    };
    let live = Live {
        options: &live,
        cancel: &cancel,
        writing: &Writing::default(),
    };
    let written = write(
        live,
        &owner,
        &compared.set,
        folders,
        Direction::Forward,
        None,
        end_it,
    );
    let error = written.await.unwrap_err();
    assert!(
        !matches!(error, TenantError::OutcomeUnknown { .. }),
        "{error}"
    );
    assert_eq!(bench.digests("live", "3", true).await, before, "{error}");
    bench.restore("3").await;
    assert_eq!(bench.digests("live", "3", true).await, then);
}

#[tokio::test]
async fn rows_that_others_need_are_listed_first_and_stay_where_that_is_wanted() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    let then = bench.digests("then_", "3", true).await;
    bench.sql("live", MISTAKE).await;
    // Two new items of tenant 3, one of which a line of tenant 4 refers to.
    bench
        .sql(
            "live",
            "insert into item (item_id, tenant_id, sku, description, price) values
               (900001, 3, 'N1', 'n', 1), (900002, 3, 'N2', 'n', 1);
             insert into order_line (order_id, line_no, item_id, quantity, unit_price)
             select min(order_id), 999, 900001, 1, 1 from sales_order where tenant_id = 4",
        )
        .await;
    says(
        &refused(&bench).await,
        &[
            "1 rows of public.item",
            "public.order_line",
            "900001 of tenant 4",
            "--on-conflict keep",
        ],
    );
    let others = bench.digests("live", "3", false).await;
    let (map, tenant) = (bench.tenancy_map().await, bench.tenant("3").await);
    let (live, scratch) = (bench.options("live"), bench.options("then_"));
    let subject = Subject {
        live: &live,
        scratch: &scratch,
        map: &map,
        tenant: &tenant,
        mode: Mode::Replace,
        filter: &Filter::default(),
        on_conflict: OnConflict::Keep,
    };
    let (id, spool) = (TenantRestoreId::new(Utc::now()), bench.work("spool"));
    let cancel = CancellationToken::new();
    let compared = compare(&subject, &id, &spool, Utc::now(), &Silent, &cancel)
        .await
        .unwrap();
    assert_eq!(compared.refused, Vec::<String>::new());
    says(&compared.warnings, &["1 rows of public.item stay"]);
    let written = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await;
    let (again, _) = look_again(&subject, &compared.set, &written.unwrap())
        .await
        .unwrap();
    assert_eq!(again.outcome, ProofOutcome::Agrees, "{again:?}");
    let mut now = bench.digests("live", "3", true).await;
    let new = "select count(*) from item where item_id in (900001, 900002)";
    assert_eq!(bench.value("live", new).await, 1);
    now.insert("public.item".to_owned(), then["public.item"].clone());
    assert_eq!(now, then);
    assert_eq!(bench.digests("live", "3", false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
}
