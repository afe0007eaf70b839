//! Programs that not every machine has: a test that needs one says that it was skipped where it is
//! missing.
//!
//! It knows nothing of the rest of the harness, so that unit tests can have it too.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// True if `program` can be run; otherwise prints that it is skipped, with its Debian package.
pub(crate) fn is_installed(program: &str, package: &str) -> bool {
    // The one question that each of them answers without doing anything.
    let asks_for_version = match program {
        "haproxy" | "nginx" => "-v",
        "go" => "version",
        _ => "--version",
    };
    runs(Command::new(program).arg(asks_for_version))
        || skipped(program, &format!("Debian: {package}"))
}

/// True if a command succeeds. Its output is discarded.
pub(crate) fn runs(command: &mut Command) -> bool {
    let ended = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ended.is_ok_and(|status| status.success())
}

/// Says that a test is skipped for want of `what`, which comes by `how`; always false.
///
/// Not by `eprintln!`, whose words the test runner keeps to itself when the test passes; ci.sh
/// looks for the line.
pub(crate) fn skipped(what: &str, how: &str) -> bool {
    // In one piece, because others write too.
    let line = format!("SKIPPED: {what} is not installed ({how})\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}
