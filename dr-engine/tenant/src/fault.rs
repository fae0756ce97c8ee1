//! Planted bugs that the tests of the tests switch on: each must make a test fail. Compiled in with
//! feature `testing` only, which no release carries.

use dr_sources::postgres::ConnectOptions;

#[cfg(test)]
thread_local! {
    /// The planted bug of this test's thread.
    pub(crate) static PLANTED: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Whether the planted bug of this name is switched on.
#[cfg(test)]
pub(crate) fn is(name: &str) -> bool {
    PLANTED.get() == name
}

/// Whether the planted bug of this name is switched on (`DR_TEST_TENANT_FAULT`).
#[cfg(all(feature = "testing", not(test)))]
pub(crate) fn is(name: &str) -> bool {
    std::env::var("DR_TEST_TENANT_FAULT").is_ok_and(|value| value == name)
}

/// Never, in a release.
#[cfg(not(any(feature = "testing", test)))]
pub(crate) fn is(_name: &str) -> bool {
    false
}

/// Where the state at the target is read: by the bug `late-by-one-commit` in the database beside it that the tests
/// of the rows keep one commit later. (With a repository, `run` asks for a later target.)
pub(crate) fn moment(scratch: &ConnectOptions) -> ConnectOptions {
    let mut moment = scratch.clone();
    if is("late-by-one-commit") {
        moment.url = moment.url.replace("/then_", "/then_later");
    }
    moment
}
