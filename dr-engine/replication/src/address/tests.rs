use super::*;

fn address(url: &str) -> Address {
    Address::from_url(url, None).unwrap()
}

#[test]
fn a_url_is_read_by_its_parts() {
    let address =
        address("postgres://dr%40erp:ge%20heim@db.example:6543/erp%2F1?application_name=x%20y");
    assert_eq!(address.host, Host::Tcp("db.example".to_owned()));
    assert_eq!(address.port, 6543);
    assert_eq!(address.user, "dr@erp");
    assert_eq!(address.password.as_deref(), Some("ge heim"));
    assert_eq!(address.database.as_deref(), Some("erp/1"));
    assert_eq!(address.application_name, "x y");
    assert_eq!(address.tls, Tls::default());
    assert_eq!(address.place(), "db.example:6543");
}

#[test]
fn what_is_left_out_has_a_default() {
    let address = address("postgresql://db.example");
    assert_eq!(address.port, 5432);
    assert_eq!(address.user, account::own_name().unwrap());
    assert_eq!(address.database, None);
    assert_eq!(address.application_name, "dr");
    assert_eq!(address.tls.mode, TlsMode::Prefer);
}

#[test]
fn a_socket_folder_is_named_in_the_query_or_as_the_host() {
    for url in [
        "postgres://dr@localhost:5433/db?host=/run/postgresql",
        "postgres://dr@localhost/db?host=%2Frun%2Fpostgresql&port=5433",
        "postgres://dr@%2Frun%2Fpostgresql:5433/db",
    ] {
        let address = address(url);
        let folder = PathBuf::from("/run/postgresql");
        assert_eq!(address.host, Host::Socket(folder.clone()), "{url}");
        assert_eq!(
            address.socket(&folder),
            PathBuf::from("/run/postgresql/.s.PGSQL.5433")
        );
    }
}

#[test]
fn an_ip_address_is_a_host() {
    assert_eq!(
        address("postgres://dr@127.0.0.1").host,
        Host::Tcp("127.0.0.1".into())
    );
    let address = address("postgres://dr@[::1]:5433/");
    assert_eq!(address.host, Host::Tcp("::1".into()));
    assert_eq!(address.place(), "[::1]:5433");
}

#[test]
fn the_query_beats_the_rest() {
    let address = address(
        "postgres://a:b@h:1/d?user=u&password=p&hostaddr=10.0.0.1&port=2&dbname=n&what=ever",
    );
    assert_eq!(address.host, Host::Tcp("10.0.0.1".into()));
    assert_eq!((address.port, address.user.as_str()), (2, "u"));
    assert_eq!(address.password.as_deref(), Some("p"));
    assert_eq!(address.database.as_deref(), Some("n"));
}

#[test]
fn a_password_from_elsewhere_beats_the_urls() {
    let address = Address::from_url("postgres://a:b@h", Some("c".to_owned())).unwrap();
    assert_eq!(address.password.as_deref(), Some("c"));
}

#[test]
fn encryption_is_chosen_by_sslmode() {
    for (text, mode) in [
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Prefer),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ] {
        let address = address(&format!("postgres://a@h?sslmode={text}"));
        assert_eq!(address.tls.mode, mode);
    }
    let address = address(
        "postgres://a@h?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem",
    );
    assert_eq!(address.tls.root_certificate, Some("/ca.pem".into()));
    let client = address.tls.client.unwrap();
    assert_eq!(client.certificate, PathBuf::from("/c.pem"));
    assert_eq!(client.key, PathBuf::from("/k.pem"));
}

#[test]
fn what_cannot_be_understood_is_refused_without_repeating_it() {
    for url in [
        "",
        "geheim",
        "mysql://a:geheim@h",
        "postgres://a:geheim@h:99999",
        "postgres://a:geheim@h?port=geheim",
        "postgres://a:geheim@h?sslmode=geheim",
        "postgres://a:geheim@h?sslcert=/geheim",
        "postgres://a:geheim@h?sslkey=/geheim",
        "postgres://a:geheim@h?hostaddr=geheim",
        "postgres://a%FF:geheim@h",
        "postgres://a%00:geheim@h",
        "postgres://a:geheim@h?application_name=%00",
    ] {
        let error = Address::from_url(url, None).unwrap_err();
        assert!(matches!(error, ReplicationError::Url { .. }), "{url}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("geheim"), "{url}: {shown}");
    }
}

#[test]
fn a_password_is_not_printed() {
    let address = address("postgres://a:geheim@h/d");
    assert!(!format!("{address:?}").contains("geheim"));
    assert!(!address.place().contains("geheim"));
}
