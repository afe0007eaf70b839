//! Regular expressions for paths.

use std::borrow::Cow;

use regex::Regex;

use crate::config::model::whole_path;

/// Converts a path for regular expressions. Bytes that are not UTF-8 become U+FFFD, so that no byte
/// hides a path from `.`.
pub(super) fn text(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

/// Anchors the expression to match the whole path. An expression that is too large with its anchors
/// stays as it is: `config` has compiled it without them.
pub(super) fn whole(regex: &Regex) -> Regex {
    Regex::new(&whole_path(regex.as_str())).unwrap_or_else(|_| regex.clone())
}
