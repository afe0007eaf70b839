//! Words of other products that are no single key of ours, and keys that a later version will have.
//!
//! Words for one key of ours stand in the row of that key.

/// Keys of the contract that this version does not have: the section and the key.
pub(super) const LATER_KEYS: &[(&str, &str)] = &[
    ("listeners.NAME", "compression"),
    ("routes[]", "auth"),
    ("routes[]", "basic_auth"),
    ("routes[]", "compression"),
];

/// Words for several keys of ours at once, or for what needs no key here.
const GENERAL_WORDS: &[(&[&str], &str)] = &[
    (
        &["global"],
        "global keys such as `workers` belong at the top level of the file",
    ),
    (
        &["middlewares"],
        "a route has keys for them, such as `rewrite` and `request_headers`",
    ),
    (
        &["http3", "quic", "h3"],
        "balancer has no HTTP/3; remove the key: clients use HTTP/2",
    ),
    (&["rule"], "write `host`, `path`, `method` or `headers`"),
];

/// The text for a word that stands in no row.
pub(super) fn hint(word: &str) -> Option<&'static str> {
    GENERAL_WORDS
        .iter()
        .find(|(words, _)| words.contains(&word))
        .map(|(_, text)| *text)
}
