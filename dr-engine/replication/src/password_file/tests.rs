use std::io::Write;

use super::*;

const PURPOSE: Purpose<'_> = Purpose {
    hosts: &["localhost", "/run/postgresql"],
    port: 5432,
    databases: &["replication", "erp"],
    user: "dr",
};

#[test]
fn the_first_line_that_fits_is_taken() {
    for (text, expected) in [
        ("localhost:5432:replication:dr:a\n", Some("a")),
        ("/run/postgresql:5432:erp:dr:a", Some("a")),
        ("*:*:*:*:a\n*:*:*:*:b\n", Some("a")),
        ("#*:*:*:*:a\n\nother:*:*:*:b\n*:*:*:dr:c\n", Some("c")),
        (
            "*:*:*:dr:with\\:colon:and\\\\slash",
            Some("with:colon:and\\slash"),
        ),
        ("*:5433:*:*:a\n*:*:other:*:b\n*:*:*:other:c\n*:*:*\n", None),
        ("", None),
    ] {
        assert_eq!(find(text, &PURPOSE).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn a_file_that_others_may_read_is_not_used() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"*:*:*:*:geheim\n").unwrap();
    for (mode, expected) in [(0o600, Some("geheim")), (0o640, None), (0o604, None)] {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            from_file(file.path(), &PURPOSE).as_deref(),
            expected,
            "{mode:o}"
        );
    }
    assert_eq!(from_file(Path::new("/nowhere"), &PURPOSE), None);
}
