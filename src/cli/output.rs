//! Output of the commands.
//!
//! A command whose output is lost has failed: `balancer status > /full/disk` must not exit with 0.
//! So a failed write is remembered for the exit code.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::net::sys;

/// A write to standard output has failed.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Writes `text` to standard output and adds a missing newline.
pub(super) fn print(text: &str) {
    if sys::stdout_was_closed() || write(&mut io::stdout().lock(), text).is_err() {
        IS_LOST.store(true, Relaxed);
    }
}

/// Writes `text` to standard error and adds a missing newline.
pub(super) fn print_error(text: &str) {
    // There is no other place to report this.
    let _ = write(&mut io::stderr().lock(), text);
}

/// Exit code of a command that ends with `code`: 1 if its output was lost.
pub(super) fn checked(code: ExitCode) -> ExitCode {
    if IS_LOST.load(Relaxed) {
        print_error("error: standard output cannot be written");
        return ExitCode::FAILURE;
    }
    code
}

/// Returns true if standard error shows colours: it is a terminal, `TERM` is not `dumb`, and
/// `NO_COLOR` is not set (no-color.org).
pub(super) fn is_coloured() -> bool {
    let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let is_refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_dumb && !is_refused && io::stderr().is_terminal()
}

fn write(to: &mut impl Write, text: &str) -> io::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    to.write_all(format!("{text}{end}").as_bytes())?;
    to.flush()
}
