//! Reads a YAML document into a tree that knows where everything stands. All YAML access is here.
//!
//! Knows nothing of balancer's keys. Plain scalars stay text as written, so that the typed readers
//! decide what they mean and can quote them. Anchors, aliases, merge keys and tags of applications
//! are refused: one place in the file, one value.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{
    Spanned, budget,
    options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy},
};

/// Largest document in bytes: enough for some 100,000 backends.
pub const MAX_BYTES: usize = 16 << 20;
/// Deepest nesting; the schema itself needs 7.
const MAX_DEPTH: usize = 32;

/// A place in the document; lines and columns count from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct SourcePlace {
    /// First byte.
    pub start: usize,
    /// First byte behind it.
    pub end: usize,
    /// Line of `start`.
    pub line: usize,
    /// Column of `start`.
    pub column: usize,
}

/// A value with its place.
#[derive(Debug)]
pub struct YamlNode {
    /// Of the whole value for scalars, of its beginning for maps and lists.
    pub place: SourcePlace,
    /// Scalar, map or list.
    pub kind: NodeKind,
}

/// Kinds of nodes, with their contents.
#[derive(Debug)]
pub enum NodeKind {
    /// Nothing, or `~`, or `null`.
    Null,
    /// Any other scalar.
    Scalar {
        /// The value of a quoted scalar; the text as it stands of a plain one.
        text: String,
        /// True for quoted and block scalars: never a number, boolean or unit.
        quoted: bool,
    },
    /// In the order of the document, repeated keys included.
    Map(Vec<(YamlNode, YamlNode)>),
    /// In the order of the document.
    List(Vec<YamlNode>),
}

/// A text that is not a document.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// The place where reading stopped.
    pub place: SourcePlace,
    /// The mistake at that place.
    pub message: String,
    /// The remedy.
    pub hint: &'static str,
}

struct SpannedNode(Spanned<RawKind>);

enum RawKind {
    Null,
    Plain,
    Text(String),
    Map(Vec<(SpannedNode, SpannedNode)>),
    List(Vec<SpannedNode>),
}

impl<'de> Deserialize<'de> for SpannedNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for RawKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawKind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<RawKind, E> {
        Ok(RawKind::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<RawKind, E> {
        Ok(RawKind::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawKind, E> {
        Ok(RawKind::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawKind, E> {
        Ok(RawKind::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawKind, E> {
        Ok(RawKind::Plain)
    }

    fn visit_str<E>(self, text: &str) -> Result<RawKind, E> {
        Ok(RawKind::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<RawKind, E> {
        Ok(RawKind::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawKind, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(RawKind::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawKind, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawKind::Map(entries))
    }
}

/// Reads one document.
pub fn read(text: &str) -> Result<YamlNode, SyntaxError> {
    if text.len() > MAX_BYTES {
        return Err(SyntaxError {
            place: SourcePlace {
                line: 1,
                column: 1,
                ..SourcePlace::default()
            },
            message: "the file is larger than 16MiB".to_owned(),
            hint: "a configuration of 10,000 backends needs less than 1MiB",
        });
    }
    let options = serde_yaml::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
        budget: budget! {
            max_depth: MAX_DEPTH,
            max_aliases: 0,
            max_anchors: 0,
            max_events: MAX_BYTES,
            max_nodes: MAX_BYTES,
        },
    };
    serde_yaml::from_str_with_options::<SpannedNode>(text, options)
        .map(|raw| settle(raw, text))
        .map_err(|error| syntax_error(&error, text))
}

fn place_of(location: serde_yaml::Location) -> SourcePlace {
    let span = location.span();
    let start = span.byte_offset().unwrap_or(0) as usize;
    SourcePlace {
        start,
        end: start + span.byte_len().unwrap_or(0) as usize,
        line: location.line() as usize,
        column: location.column() as usize,
    }
}

/// Puts the text of plain scalars in, so that `010` or `1_000` is shown as it was written.
fn settle(raw: SpannedNode, text: &str) -> YamlNode {
    let place = place_of(raw.0.referenced);
    let written = text.get(place.start..place.end).unwrap_or_default();
    let kind = match raw.0.value {
        RawKind::Null => NodeKind::Null,
        RawKind::Plain => NodeKind::Scalar {
            text: written.to_owned(),
            quoted: false,
        },
        RawKind::Text(value) => NodeKind::Scalar {
            quoted: written.starts_with(['"', '\'', '|', '>']),
            text: value,
        },
        RawKind::Map(entries) => NodeKind::Map(
            entries
                .into_iter()
                .map(|(key, value)| (settle(key, text), settle(value, text)))
                .collect(),
        ),
        RawKind::List(items) => {
            NodeKind::List(items.into_iter().map(|item| settle(item, text)).collect())
        }
    };
    YamlNode { place, kind }
}

fn syntax_error(error: &serde_yaml::Error, text: &str) -> SyntaxError {
    let error = error.without_snippet();
    let mut place = error.location().map(place_of).unwrap_or_default();
    place.line = place.line.max(1);
    place.column = place.column.max(1);
    place.start = offset_of(text, place.line, place.column);
    place.end = place.start;
    let (message, hint) = explain(error);
    SyntaxError {
        place,
        message,
        hint,
    }
}

fn explain(error: &serde_yaml::Error) -> (String, &'static str) {
    use serde_yaml::{Error, budget::BudgetBreach};
    match error {
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => (
                "anchors (`&`) and aliases (`*`) are not supported".to_owned(),
                "write the value out; quote a value that begins with `&` or `*`",
            ),
            BudgetBreach::Depth { .. } => (
                "the file is nested more than 32 levels deep".to_owned(),
                "no key needs more than 7 levels",
            ),
            _ => (
                "the file is too large".to_owned(),
                "leave out what is not needed",
            ),
        },
        Error::UnknownAnchor { .. } => (
            "anchors (`&`) and aliases (`*`) are not supported".to_owned(),
            "write the value out; quote a value that begins with `*`",
        ),
        Error::MergeKeyNotAllowed { .. } => (
            "merge keys (`<<`) are not supported".to_owned(),
            "write the keys out",
        ),
        Error::MultipleDocuments { .. } => (
            "the file has more than one document".to_owned(),
            "keep one document and remove the line `---`",
        ),
        _ => {
            let full = error.to_string();
            let message = full
                .rsplit_once(" at line ")
                .map_or(full.as_str(), |(message, _)| message);
            if let Some((_, tag)) = message.split_once("unsupported tag ") {
                return (
                    format!("tags such as {tag} are not supported"),
                    "write the value itself; put a value that begins with `!` in quotes",
                );
            }
            let hint = if message.contains("mapping values are not allowed") {
                "check the indentation, and put values with `: ` in quotes"
            } else if message.contains("tabs disallowed") {
                "indent with spaces: YAML allows no tabs there"
            } else if message.contains("unclosed") {
                "close it, or quote the value"
            } else {
                "check indentation, brackets and quotes here and on the line above"
            };
            (format!("not valid YAML: {message}"), hint)
        }
    }
}

/// The byte at `line` and `column`, or the end of that line.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let mut start = 0;
    for (number, content) in text.split_inclusive('\n').enumerate() {
        if number + 1 == line {
            let content = content.trim_end_matches(['\n', '\r']);
            return start
                + content
                    .char_indices()
                    .nth(column - 1)
                    .map_or(content.len(), |(offset, _)| offset);
        }
        start += content.len();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(node: &YamlNode) -> (&str, bool, usize, usize) {
        match &node.kind {
            NodeKind::Scalar { text, quoted } => {
                (text, *quoted, node.place.line, node.place.column)
            }
            other => panic!("not a scalar: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_place() {
        let node = read("[010, \"é\\t\", 1_000, 0x10, on, .inf, 127.0.0.1:80]").unwrap();
        let NodeKind::List(items) = node.kind else {
            panic!("not a list")
        };
        let found: Vec<_> = items.iter().map(scalar).collect();
        assert_eq!(
            found,
            [
                ("010", false, 1, 2),
                ("é\t", true, 1, 7),
                ("1_000", false, 1, 14),
                ("0x10", false, 1, 21),
                ("on", false, 1, 27),
                (".inf", false, 1, 31),
                ("127.0.0.1:80", false, 1, 37),
            ]
        );
    }

    #[test]
    fn repeated_keys_are_kept() {
        let node = read("a: 1\na: 2\n").unwrap();
        let NodeKind::Map(entries) = node.kind else {
            panic!("not a map")
        };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].0.place.line, 2);
    }

    #[test]
    fn bombs_are_refused() {
        let deep = "[".repeat(100_000);
        assert!(read(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(read(&deep).unwrap_err().message.contains("32 levels"));
        assert!(read("a: &x [1]\nb: *x\n").is_err());
        assert!(read("<<: {a: 1}\n").is_err());
        assert!(read(&" ".repeat(MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn syntax_errors_have_a_place() {
        let error = read("a: 1\n b: 2\n").unwrap_err();
        assert_eq!((error.place.line, error.place.column), (2, 3));
        assert_eq!(error.place.start, 7);
    }
}
