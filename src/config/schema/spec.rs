//! Types and ranges of values, and short constructors for the rows.

use std::time::Duration;

/// Type and range of a key's value.
#[derive(Debug, Clone, Copy)]
pub struct ValueSpec {
    /// A single value, or each entry of a list or map.
    pub kind: ValueKind,
    /// One value, a list or a map.
    pub shape: ValueShape,
    /// A word that may stand instead: `none`, `auto`, `any`, `https`.
    pub or_word: Option<&'static str>,
    /// True where keys of its own may stand instead of the text.
    pub or_keys: bool,
    /// Pattern that every text matches, or every name in a map of keys (ECMA-262, for the JSON
    /// Schema). The reader is stricter.
    pub pattern: Option<&'static str>,
    /// Markdown for the docs where the kind does not say it well.
    pub shown: Option<&'static str>,
}

/// A single value. Durations, sizes, shares and rates are written with their unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A section: its keys have rows of their own.
    Keys,
    /// `true` or `false`.
    Boolean,
    /// A whole number without a unit.
    Integer {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// A number with `ms`, `s`, `m` or `h`.
    Duration {
        /// Least value.
        min: Duration,
        /// Greatest value.
        max: Duration,
    },
    /// A number with `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.
    Size {
        /// Least value in bytes.
        min: u64,
        /// Greatest value in bytes.
        max: u64,
    },
    /// `0%` to `100%`.
    Share,
    /// A number with `/s`, `/m` or `/h`.
    Rate,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any other text, described for the docs.
    Text(&'static str),
}

/// Number of values that a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueShape {
    /// One.
    Single,
    /// A list of at least `min`.
    List {
        /// 0 or 1.
        min: usize,
    },
    /// One value, or a list of at least `min`.
    OneOrList {
        /// 0 or 1.
        min: usize,
    },
    /// A map whose keys the user chooses.
    Map {
        /// Description of its keys, for the docs.
        names: &'static str,
    },
}

pub(super) const ZERO_DURATION: Duration = Duration::ZERO;
pub(super) const ONE_MILLISECOND: Duration = Duration::from_millis(1);
/// Shortest time from one health check to the next: shorter ones would load backends more than
/// clients do.
pub(super) const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const ONE_SECOND: Duration = Duration::from_secs(1);
pub(super) const ONE_HOUR: Duration = Duration::from_hours(1);
/// The longest TCP keepalive time that Linux takes: 32,767 s (tcp(7), MAX_TCP_KEEPIDLE), in whole
/// hours.
pub(super) const MAX_TCP_KEEPALIVE: Duration = Duration::from_hours(9);
pub(super) const ONE_DAY: Duration = Duration::from_hours(24);
pub(super) const ONE_WEEK: Duration = Duration::from_hours(168);
pub(super) const ONE_YEAR: Duration = Duration::from_hours(8_760);
/// Largest request body that may be allowed, in bytes.
pub(super) const MAX_BODY_BYTES: u64 = 1 << 40;

/// A name of a listener or pool.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9_.-]{1,64}$";

/// A token, RFC 9110 section 5.6.2: names of fields and methods.
pub(super) const TOKEN_PATTERN: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

/// Statuses of a redirect, RFC 9110 section 15.4: those that have a `Location` and no choices.
pub(super) const REDIRECT_STATUSES: &[&str] = &["301", "302", "303", "307", "308"];

const fn single(kind: ValueKind) -> ValueSpec {
    ValueSpec {
        kind,
        shape: ValueShape::Single,
        or_word: None,
        or_keys: false,
        pattern: None,
        shown: None,
    }
}

pub(super) const fn keys() -> ValueSpec {
    single(ValueKind::Keys)
}

pub(super) const fn boolean() -> ValueSpec {
    single(ValueKind::Boolean)
}

pub(super) const fn integer(min: u64, max: u64) -> ValueSpec {
    single(ValueKind::Integer { min, max })
}

pub(super) const fn duration(min: Duration, max: Duration) -> ValueSpec {
    single(ValueKind::Duration { min, max })
}

pub(super) const fn size(min: u64, max: u64) -> ValueSpec {
    single(ValueKind::Size { min, max })
}

pub(super) const fn share() -> ValueSpec {
    single(ValueKind::Share)
}

pub(super) const fn rate() -> ValueSpec {
    single(ValueKind::Rate)
}

pub(super) const fn one_of(words: &'static [&'static str]) -> ValueSpec {
    single(ValueKind::OneOf(words))
}

pub(super) const fn text(description: &'static str) -> ValueSpec {
    single(ValueKind::Text(description))
}

/// The name of a header.
pub(super) const fn header() -> ValueSpec {
    text("name of a header").pattern(TOKEN_PATTERN)
}

/// Addresses and networks, in any number.
pub(super) const fn networks() -> ValueSpec {
    ValueSpec {
        shape: ValueShape::OneOrList { min: 0 },
        shown: Some("networks"),
        ..text("network")
    }
}

impl ValueSpec {
    /// True for the name of a header.
    pub(in crate::config) fn is_header_name(&self) -> bool {
        self.kind == header().kind
    }

    pub(super) const fn or(self, word: &'static str) -> Self {
        Self {
            or_word: Some(word),
            ..self
        }
    }

    pub(super) const fn or_keys(self) -> Self {
        Self {
            or_keys: true,
            ..self
        }
    }

    pub(super) const fn list(self) -> Self {
        Self {
            shape: ValueShape::List { min: 0 },
            ..self
        }
    }

    pub(super) const fn non_empty_list(self) -> Self {
        Self {
            shape: ValueShape::List { min: 1 },
            ..self
        }
    }

    pub(super) const fn one_or_more(self) -> Self {
        Self {
            shape: ValueShape::OneOrList { min: 1 },
            ..self
        }
    }

    pub(super) const fn map_of(self, names: &'static str) -> Self {
        Self {
            shape: ValueShape::Map { names },
            ..self
        }
    }

    pub(super) const fn pattern(self, pattern: &'static str) -> Self {
        Self {
            pattern: Some(pattern),
            ..self
        }
    }

    pub(super) const fn shown(self, markdown: &'static str) -> Self {
        Self {
            shown: Some(markdown),
            ..self
        }
    }
}
