//! Named places at which a test makes a program fail, or ends it, at exactly that instant.
//!
//! They exist only in builds with the cargo feature `failpoints`, which no release has: without it every call
//! here is empty. `FAILPOINTS="disk::any=6*off->1*return(ENOSPC)"` in the environment of such a build lets its
//! seventh call to the disk find no room. Actions are those of the crate `fail`; `return` takes
//!
//! - `EIO`, `ENOSPC`, or another number of an error: the call fails so;
//! - `short`: half of the bytes are written, then the disk is full;
//! - `abort`: the process ends there, as by `kill -9`: nothing is flushed, no destructor runs.
//!
//! [`reach`] is for places that are not calls to the disk: there only `abort` and delays mean something.

use std::io;

/// How a call to the disk is to fail.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Half of the bytes are written before it does.
    pub(crate) short: bool,
    /// As what.
    pub(crate) error: io::Error,
}

/// The environment's failpoints, while it lives.
#[cfg(feature = "failpoints")]
#[derive(Debug)]
pub struct Scenario {
    _held: fail::FailScenario<'static>,
}

/// Makes the environment's failpoints hold, and warns of them; `main` keeps what is returned to its end.
#[cfg(feature = "failpoints")]
#[must_use = "the failpoints hold while it lives"]
pub fn setup() -> Scenario {
    eprintln!("warning: this program was built with failpoints, for tests; never deploy it");
    Scenario { _held: fail::FailScenario::setup() }
}

/// Ends the process here, or makes it wait, if a test asked for it.
#[inline]
pub fn reach(point: &'static str) {
    let _ = fault(point);
}

#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn fault(_: &'static str) -> Option<Fault> {
    None
}

#[cfg(feature = "failpoints")]
pub(crate) fn fault(point: &'static str) -> Option<Fault> {
    let action = fail::eval(point, |action| action.unwrap_or_default())?;
    let (short, code) = match action.as_str() {
        "abort" => std::process::abort(),
        "ENOSPC" => (false, 28),
        "short" => (true, 28),
        "EIO" => (false, 5),
        number => (
            false,
            number.parse().expect("a failpoint returns EIO, ENOSPC, short, abort or a number"),
        ),
    };
    Some(Fault { short, error: io::Error::from_raw_os_error(code) })
}
