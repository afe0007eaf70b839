//! The table of keys: everything about a key of the file that is not code stands here, once.
//!
//! From it come the check of unknown keys, the ranges that readers accept, hints, the names and
//! `needs a restart` of a reload's log, the tables of docs/configuration.md and the JSON Schema of
//! `balancer schema`.
//!
//! # To add a key
//! 1. A field in `config/model/`, with its default in `config/defaults.rs`.
//! 2. A row here, in the file of its section. `UPDATE_DOCS=1 cargo test --test static` writes the
//!    docs and the schema.
//! 3. A line in the reader of its section in `config/file/`, and there the rules that it has with
//!    other keys.
//!
//! # To add a hint
//! - Another product's word for a key of ours: in `other_words` of that key's row, with what to
//!   write instead. Where several rows have the word, the row nearest to the place of the mistake
//!   is taken (see `hint_for_word`). A word that means the key in its own section only goes into
//!   `section_words`. An example in the text, such as `{interval: 2s}`, gives way to the author's
//!   value where that is one of ours.
//! - Another product's word for a value: in `other_values` of the key's row, with ours; or in
//!   `value_hints`, with the whole text where it takes more than one word of ours. Each with a file
//!   in tests/golden/config.
//! - A word that is no single key of ours, or that a later version will have: in `words.rs`.
//!
//! All words are written in lower case with `_` for `-`: that is how they are looked up. Texts name
//! keys in backquotes.

mod backend_tls;
mod balancing;
mod discover;
mod global;
mod health;
mod json;
mod listeners;
mod markdown;
mod pools;
mod routes;
mod spec;
mod sticky;
mod words;

use std::{collections::HashMap, sync::LazyLock};

pub use self::{
    json::document,
    markdown::table,
    spec::{ValueKind, ValueShape, ValueSpec},
};
use super::{
    model::{Config, ListenerConfig, PoolConfig},
    problem::word_list,
};

/// One key of the file.
#[derive(Debug, Clone, Copy)]
pub struct KeyRow {
    /// Path in the file: `NAME` for a name that the user chooses, `[]` for an entry of a list.
    pub path: &'static str,
    /// Type and range of the value.
    pub value: ValueSpec,
    /// Default.
    pub default: KeyDefault,
    /// Its meaning in one line of Markdown, for the docs and editors. May be empty.
    pub doc: &'static str,
    /// Reload or restart.
    pub effect: KeyEffect,
    /// Comparison with another configuration, for the log of a reload.
    pub differs: KeyComparison,
    /// Words of other products for this key, and what to write instead.
    pub other_words: &'static [(&'static [&'static str], &'static str)],
    /// The same for words that mean this key in its own section only.
    pub section_words: &'static [(&'static [&'static str], &'static str)],
    /// Words of other products for its values, and ours.
    pub other_values: &'static [(&'static str, &'static str)],
    /// Values that a later version will have.
    pub later_values: &'static [&'static str],
    /// Wrong values, and the whole hint for them: `{value}` in it is the value, `{known}` the words
    /// that it may be. A `*` at the end of a wrong value is any ending, `DURATION` and `NUMBER` are
    /// any duration and number.
    pub value_hints: &'static [(&'static [&'static str], &'static str)],
}

/// The common case, for struct update syntax.
const KEY: KeyRow = KeyRow {
    path: "",
    value: spec::keys(),
    default: KeyDefault::Nothing,
    doc: "",
    effect: KeyEffect::Reload,
    differs: KeyComparison::WithSection,
    other_words: &[],
    section_words: &[],
    other_values: &[],
    later_values: &[],
    value_hints: &[],
};

/// The file as a whole.
pub(super) static ROOT_ROW: KeyRow = KEY;

/// The default of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyDefault {
    /// Not worth a word: the keys of the section have defaults of their own, or there is no effect.
    Nothing,
    /// The key must be given.
    Required,
    /// The same as this text, as it would be written in the file.
    Value(&'static str),
    /// No value that could be written: Markdown for the docs.
    Words(&'static str),
}

/// Time at which the change of a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEffect {
    /// With a reload.
    Reload,
    /// At the next start; a reload logs `needs a restart`.
    Restart,
}

/// Comparison of a key in two configurations: true when it differs.
#[derive(Debug, Clone, Copy)]
pub enum KeyComparison {
    /// The section that the key is in is compared as a whole.
    WithSection,
    /// Compares two files.
    File(fn(&Config, &Config) -> bool),
    /// Compares two listeners of one name.
    Listener(fn(&ListenerConfig, &ListenerConfig) -> bool),
    /// Compares two pools of one name.
    Pool(fn(&PoolConfig, &PoolConfig) -> bool),
}

impl KeyRow {
    /// Path of the section that the key is in, and the key itself.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }

    /// The key without its section.
    pub fn name(&self) -> &'static str {
        self.split().1
    }

    /// The listeners', routes' or pools' part of the file, or the top of it.
    pub fn part(&self) -> FilePart {
        FilePart::of(self.path)
    }
}

/// A part of the file with a table of its own in the docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePart {
    /// The keys at the top and their sections.
    Global,
    /// `listeners.NAME`.
    Listeners,
    /// `routes[]`.
    Routes,
    /// `pools.NAME`.
    Pools,
}

impl FilePart {
    /// Every part, in the order of the docs.
    pub const ALL: [Self; 4] = [Self::Global, Self::Listeners, Self::Routes, Self::Pools];

    /// The part that a path belongs to; a section counts to the part of its keys.
    fn of(path: &str) -> Self {
        if path.starts_with("listeners.") {
            Self::Listeners
        } else if path.starts_with("routes[]") {
            Self::Routes
        } else if path.starts_with("pools.") {
            Self::Pools
        } else {
            Self::Global
        }
    }

    /// The rows of the part, in the order of the docs.
    pub fn rows(self) -> impl Iterator<Item = &'static KeyRow> {
        let files: [&'static [KeyRow]; 6] = match self {
            Self::Global => [global::GLOBAL_KEYS, &[], &[], &[], &[], &[]],
            Self::Listeners => [listeners::LISTENER_KEYS, &[], &[], &[], &[], &[]],
            Self::Routes => [routes::ROUTE_KEYS, &[], &[], &[], &[], &[]],
            Self::Pools => [
                balancing::BALANCING_KEYS,
                pools::BACKEND_KEYS,
                sticky::STICKY_KEYS,
                discover::DISCOVER_KEYS,
                health::HEALTH_KEYS,
                pools::TRAFFIC_KEYS,
            ],
        };
        files.into_iter().flatten()
    }
}

/// Every row, in the order of the docs.
pub fn rows() -> impl Iterator<Item = &'static KeyRow> {
    FilePart::ALL.into_iter().flat_map(FilePart::rows)
}

/// The keys of each section, by the section's path.
static KEYS_OF_SECTIONS: LazyLock<HashMap<&'static str, Vec<&'static KeyRow>>> =
    LazyLock::new(|| {
        let mut sections: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows() {
            sections.entry(row.split().0).or_default().push(row);
        }
        sections
    });

/// The rows of a section's own keys; none for a path that is not a section.
pub fn section(path: &str) -> &'static [&'static KeyRow] {
    KEYS_OF_SECTIONS.get(path).map_or(&[], Vec::as_slice)
}

/// The row of a key in a section.
pub fn find(path: &str, key: &str) -> Option<&'static KeyRow> {
    section(path).iter().copied().find(|row| row.name() == key)
}

/// The hint for `word`, an unknown key in the section `at`, with the row of the key that is meant
/// if it is one key.
pub(super) fn hint_for_word(
    at: &str,
    word: &str,
) -> Option<(Option<&'static KeyRow>, &'static str)> {
    let texts = |row: &'static KeyRow| {
        let here = if row.split().0 == at {
            row.section_words
        } else {
            &[]
        };
        let entries = here.iter().chain(row.other_words);
        entries.filter_map(move |(words, text)| words.contains(&word).then_some((row, *text)))
    };
    // The row nearest to the mistake: of the same section, of the same part of the file, the first
    // in the table.
    rows()
        .flat_map(texts)
        .min_by_key(|(row, _)| (row.split().0 != at, row.part() != FilePart::of(at)))
        .map(|(row, text)| (Some(row), text))
        .or_else(|| words::hint(word).map(|text| (None, text)))
}

/// A hint of `row` with the words that its key may have for `{known}`.
pub(super) fn with_known_words(row: &KeyRow, text: &str) -> String {
    match row.value.kind {
        ValueKind::OneOf(words) => text.replace("{known}", &word_list(words)),
        _ => text.to_owned(),
    }
}

/// Sections in the order of the table that have `key`, without `except`.
pub(super) fn sections_with<'k>(
    key: &'k str,
    except: &'k str,
) -> impl Iterator<Item = &'static str> + use<'k> {
    rows()
        .map(KeyRow::split)
        .filter(move |(section, name)| *name == key && *section != except)
        .map(|(section, _)| section)
}

/// True for a key that a later version will have.
pub(super) fn is_later_key(section: &str, key: &str) -> bool {
    words::LATER_KEYS.contains(&(section, key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_stands_once_and_its_section_is_a_key() {
        let mut seen = BTreeSet::new();
        for row in rows() {
            assert!(seen.insert(row.path), "`{}` has two rows", row.path);
            let section = row.split().0;
            let owner = section.trim_end_matches(".NAME").trim_end_matches("[]");
            assert!(
                section.is_empty() || rows().any(|other| other.path == owner),
                "`{}` is in no section",
                row.path
            );
        }
    }

    #[test]
    fn no_word_of_another_product_is_a_key_of_ours_in_the_same_section() {
        for row in rows() {
            for (words, text) in row.other_words.iter().chain(row.section_words) {
                assert!(!text.is_empty() && !words.is_empty(), "{}", row.path);
                for word in *words {
                    assert!(
                        find(row.split().0, word).is_none(),
                        "`{word}` is a key beside `{}`",
                        row.path
                    );
                    assert_eq!(
                        *word,
                        word.to_ascii_lowercase().replace('-', "_"),
                        "{}",
                        row.path
                    );
                }
            }
        }
    }

    #[test]
    fn a_word_has_one_text_in_each_section() {
        let mut seen = BTreeSet::new();
        for row in rows() {
            let all = row.other_words.iter().chain(row.section_words);
            for word in all.flat_map(|(words, _)| *words) {
                assert!(
                    seen.insert((row.split().0, *word)),
                    "`{word}` is twice among the keys of `{}`",
                    row.split().0
                );
            }
        }
    }

    #[test]
    fn later_keys_are_not_accepted_now() {
        for (section, key) in words::LATER_KEYS {
            assert!(find(section, key).is_none(), "{section}.{key}");
            assert!(!super::section(section).is_empty(), "{section}");
        }
    }
}
