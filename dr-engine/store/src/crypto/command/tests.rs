use super::*;
use crate::crypto::random_secret;

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn command(wrap: &str, unwrap: &str) -> KeyCommand {
    KeyCommand {
        wrap: shell(wrap),
        unwrap: shell(unwrap),
    }
}

#[test]
fn what_a_command_wrapped_it_unwraps() {
    let secret = random_secret();
    // Another alphabet for the digits: enough to be no longer the secret.
    let good = command("tr 0-9 A-J", "tr A-J 0-9");
    let wrapped = good.wrap(&secret).unwrap();
    assert_eq!(good.unwrap(&wrapped).unwrap(), secret);
}

#[test]
fn a_command_that_fails_is_named_with_its_words_but_not_with_secrets() {
    let secret = random_secret();
    let bad = command("cat >&2; exit 3", "cat");
    let error = bad.wrap(&secret).unwrap_err().to_string();
    assert!(error.contains("/bin/sh") && error.contains("3"), "{error}");
    assert!(!error.contains(&hex::encode(secret.as_slice())), "{error}");
    let bad = command("echo no such key ring >&2; exit 1", "cat");
    let error = bad.wrap(&secret).unwrap_err().to_string();
    assert!(error.contains("no such key ring"), "{error}");
    let missing = KeyCommand {
        wrap: vec!["/nowhere/at/all".to_owned()],
        unwrap: Vec::new(),
    };
    assert!(missing.wrap(&secret).is_err());
    assert!(missing.unwrap(b"x").is_err());
}

#[test]
fn a_command_that_prints_garbage_nothing_or_the_secret_itself_is_refused() {
    let secret = random_secret();
    assert!(command("cat", "cat").wrap(&secret).is_err());
    assert!(command("cat >/dev/null", "cat").wrap(&secret).is_err());
    assert!(
        command("yes", "cat").wrap(&secret).is_err(),
        "a flood without end"
    );
    for garbage in [
        "echo hello",
        "true",
        "head -c 1000 /dev/urandom",
        "yes | head -c 100000",
    ] {
        let error = command("tr 0-9 A-J", garbage).unwrap(b"x").unwrap_err();
        assert!(matches!(error, StoreError::KeyCommand { .. }), "{garbage}");
    }
}

#[test]
fn a_command_that_hangs_or_leaves_its_output_open_is_ended() {
    for script in ["sleep 600", "sleep 600 & exit 0", "trap '' TERM; sleep 600"] {
        let argv = shell(script);
        let program = Program::of(&argv, "unwrap", Duration::from_millis(300)).unwrap();
        let before = SystemClock.monotonic_ns();
        let error = program.run(b"x").unwrap_err().to_string();
        let took = Duration::from_nanos(SystemClock.monotonic_ns() - before);
        assert!(error.contains("did not end"), "{script}: {error}");
        assert!(took < Duration::from_secs(20), "{script}: {took:?}");
    }
}
