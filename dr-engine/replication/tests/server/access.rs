//! Who is let in.

use dr_replication::{Address, Connection, ReplicationError};
use dr_sources::instance::PostgresInstance;

use crate::cluster::{Home, LIMIT, Server, loopback, run};

const PASSWORD: &str = "geh eim'%";
const HBA: &str = "local all all trust
local replication clear password
host replication scram 127.0.0.1/32 scram-sha-256
host replication md5 127.0.0.1/32 md5
host replication clear 127.0.0.1/32 password
host replication postgres 127.0.0.1/32 trust
host replication plain 127.0.0.1/32 trust
";

async fn server() -> Server {
    let home = Home::new();
    let data = home.initdb("data");
    home.write(&data.join("pg_hba.conf"), HBA);
    let instance = home.start(&data, &[]);
    run(
        &instance,
        &[
            "create role scram replication login password 'geh eim''%'",
            "create role clear replication login password 'geh eim''%'",
            "create role plain login",
            "set password_encryption = md5; create role md5 replication login password 'geh eim''%'",
        ],
    )
    .await;
    Server { instance, home }
}

async fn connect(
    server: &PostgresInstance,
    user: &str,
    password: Option<&str>,
) -> Result<Connection, ReplicationError> {
    let url = loopback(server, user);
    let address = Address::from_url(&url, password.map(str::to_owned)).unwrap();
    Connection::connect(&address, LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_password_is_let_in_and_no_other() {
    let server = server().await;
    for user in ["scram", "md5"] {
        let connected = connect(&server.instance, user, Some(PASSWORD)).await;
        let mut receiver = connected.unwrap_or_else(|error| panic!("{user}: {error:?}"));
        receiver.identify_system().await.unwrap();

        let error = connect(&server.instance, user, Some("falsch"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ReplicationError::Refused { .. }),
            "{user}: {error:?}"
        );
        assert_eq!(error.code(), Some("28P01"), "{user}: {error:?}");
        assert!(!error.is_down());
        assert!(!format!("{error:?} {error}").contains("falsch"));

        for none in [None, Some("")] {
            let error = connect(&server.instance, user, none).await.unwrap_err();
            let missing = matches!(error, ReplicationError::PasswordMissing { .. });
            assert!(missing, "{user}: {error:?}");
            assert!(error.to_string().contains(user));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_not_shown_to_everybody() {
    let server = server().await;
    let error = connect(&server.instance, "clear", Some(PASSWORD))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ReplicationError::PasswordExposed { .. }),
        "{error:?}"
    );
    assert!(!format!("{error:?} {error}").contains(PASSWORD));

    // Nobody is between us and a socket.
    let url = server
        .instance
        .url("postgres")
        .replace("postgres@", "clear@");
    let address = Address::from_url(&url, Some(PASSWORD.to_owned())).unwrap();
    Connection::connect(&address, LIMIT).await.unwrap();
    let address = Address::from_url(&url, Some("falsch".to_owned())).unwrap();
    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some("28P01"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_replicate_is_refused() {
    let server = server().await;
    let error = connect(&server.instance, "plain", None).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Refused { .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), Some("42501"), "{error:?}");
    // No line of pg_hba.conf.
    let error = connect(&server.instance, "nobody", None).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Refused { .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), Some("28000"), "{error:?}");
    assert!(error.hint().unwrap().contains("pg_hba.conf"));
}
