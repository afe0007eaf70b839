//! Writes the commands' words to the terminal. A closed pipe (`balancer status | head -1`) is no error.

use std::io::{self, Write};

/// Writes `text` to standard output, with a line end if it has none.
pub(super) fn say(text: &str) {
    write(&mut io::stdout().lock(), text);
}

/// Writes `text` to standard error, with a line end if it has none.
pub(super) fn complain(text: &str) {
    write(&mut io::stderr().lock(), text);
}

fn write(to: &mut impl Write, text: &str) {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // Nothing can be said about a terminal that does not listen.
    let _ = to.write_all(format!("{text}{end}").as_bytes());
    let _ = to.flush();
}
