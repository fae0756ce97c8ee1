//! The name of the account that this process runs as.

/// The login name, by passwd(5); `None` for an account that is not in it.
pub(crate) fn own_name() -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    name_of(&text, own)
}

fn name_of(passwd: &str, user: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id: u32 = fields.nth(1)?.parse().ok()?;
        (id == user).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# no account\ndr:x:1001:1001::/srv/dr:/bin/sh\n";
        assert_eq!(name_of(passwd, 1001).as_deref(), Some("dr"));
        assert_eq!(name_of(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_of(passwd, 7), None);
    }
}
