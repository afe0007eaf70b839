//! Walks the tree of a document: readers for sections and lists that collect every problem. Scalars
//! are read in `scalar`, and each node knows its row in the table of keys.
//!
//! A reader returns `None` after it has reported; the caller goes on with the default, so that one
//! run finds all.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::{
    hint,
    problem::{Problem, Severity, list_of_all, quote},
    schema::{self, KeyRow, ValueShape},
    yaml::{NodeKind, SourcePlace, YamlNode},
};

/// A value that a word such as `none` or `auto` may stand instead of: `None` is that word.
pub(super) type OrNone<T> = Option<T>;

/// Most problems that are kept: a file from a broken generator must not fill the memory.
const MAX_PROBLEMS: usize = 1_000;

/// Access to the files and directories that the configuration names.
pub trait FileAccess {
    /// The bytes of a file, at most `limit` and one more.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// The names in a directory, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// True when `path` is a directory.
    fn is_dir(&self, path: &Path) -> bool;
    /// The certificates of the authorities that this machine believes.
    fn system_roots(&self) -> Vec<CertificateDer<'static>>;
}

/// One step of a key path.
#[derive(Clone, Copy)]
enum PathStep<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// A node with the path that led to it.
#[derive(Clone, Copy)]
pub(super) struct NodeRef<'a> {
    pub(super) node: &'a YamlNode,
    /// Its key in the document, if it is the value of one.
    pub(super) key: Option<&'a YamlNode>,
    parent: Option<&'a NodeRef<'a>>,
    step: PathStep<'a>,
    /// The row of its key in the table; for an entry of a list or map the row of that.
    pub(super) row: &'static KeyRow,
    /// True for an entry of a list or map.
    is_entry: bool,
}

impl<'a> NodeRef<'a> {
    /// The root of a document.
    pub(super) fn root(node: &'a YamlNode) -> Self {
        Self {
            node,
            key: None,
            parent: None,
            step: PathStep::Root,
            row: &schema::ROOT_ROW,
            is_entry: false,
        }
    }

    /// The root of a document that holds the value of the key with `row`, or one entry of it.
    pub(super) fn root_of(node: &'a YamlNode, row: &'static KeyRow, is_entry: bool) -> Self {
        Self {
            row,
            is_entry,
            ..Self::root(node)
        }
    }

    /// `pools.app.backends[2].weight`.
    pub(super) fn path(&self) -> String {
        let mut out = self.parent.map(NodeRef::path).unwrap_or_default();
        match self.step {
            PathStep::Root => {}
            PathStep::Index(index) => {
                out.push('[');
                out.push_str(&index.to_string());
                out.push(']');
            }
            PathStep::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                for c in key.chars() {
                    if c.is_control() {
                        out.extend(c.escape_default());
                    } else {
                        out.push(c);
                    }
                }
            }
        }
        out
    }

    /// The path of the section that this is in the table, if it is one.
    fn section_path(&self) -> Cow<'static, str> {
        let path = self.row.path;
        match self.row.value.shape {
            _ if !self.is_entry => path.into(),
            ValueShape::Map { .. } => format!("{path}.NAME").into(),
            _ => format!("{path}[]").into(),
        }
    }

    /// The key's place where there is a key, else the value's.
    pub(super) fn key_place(&self) -> SourcePlace {
        self.key.map_or(self.node.place, |key| key.place)
    }

    /// The last key of the path.
    pub(super) fn last_key(&self) -> &'a str {
        match (self.step, self.parent) {
            (PathStep::Key(key), _) => key,
            (_, Some(parent)) => parent.last_key(),
            _ => "",
        }
    }

    /// The text of a scalar.
    pub(super) fn scalar(&self) -> Option<&'a str> {
        match &self.node.kind {
            NodeKind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// True for the plain word `word`.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.node.kind, NodeKind::Scalar { text, .. } if text == word)
    }

    /// True for the word that may stand instead of the key's value: `none`, `auto`, `any`, `https`.
    pub(super) fn is_or_word(&self) -> bool {
        self.row
            .value
            .or_word
            .is_some_and(|word| self.is_word(word))
    }

    /// True for a map with the key `key`, right or wrong.
    pub(super) fn has_key(&self, key: &str) -> bool {
        let NodeKind::Map(entries) = &self.node.kind else {
            return false;
        };
        entries
            .iter()
            .any(|(name, _)| matches!(&name.kind, NodeKind::Scalar { text, .. } if text == key))
    }

    /// The value of `key`, if it is given and the section has such a key. For rules over several
    /// sections: the section itself has been read.
    pub(super) fn child<'b>(&'b self, key: &'b str) -> Option<NodeRef<'b>> {
        let NodeKind::Map(entries) = &self.node.kind else {
            return None;
        };
        let is_named =
            |name: &YamlNode| matches!(&name.kind, NodeKind::Scalar { text, .. } if text == key);
        let (name, node) = entries.iter().find(|(name, _)| is_named(name))?;
        Some(NodeRef {
            node,
            key: Some(name),
            parent: Some(self),
            step: PathStep::Key(key),
            row: schema::find(&self.section_path(), key)?,
            is_entry: false,
        })
    }

    /// True for a map.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.kind, NodeKind::Map(_))
    }
}

/// A map whose keys have been checked.
pub(super) struct Section<'a> {
    /// The map itself.
    pub(super) at: NodeRef<'a>,
    entries: Vec<MapEntry<'a>>,
    /// Keys that the section does not have; they have been reported.
    unknown: Vec<&'a str>,
}

/// A key of a map with its value.
struct MapEntry<'a> {
    name: &'a str,
    key: &'a YamlNode,
    node: &'a YamlNode,
    /// Its own row; that of the map where the user chooses the keys.
    row: &'static KeyRow,
}

impl Section<'_> {
    /// The value of `key`, if it is given.
    pub(super) fn get<'b>(&'b self, key: &str) -> Option<NodeRef<'b>> {
        debug_assert!(
            schema::find(&self.at.section_path(), key).is_some(),
            "`{key}` has no row in the table"
        );
        self.iter().find(|at| at.last_key() == key)
    }

    /// True if keys were reported that the section does not have.
    pub(super) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// True if `key` is given, or an unknown word that was written for it: its absence is then no
    /// second mistake.
    pub(super) fn is_meant(&self, key: &str) -> bool {
        let row = schema::find(&self.at.section_path(), key);
        debug_assert!(row.is_some(), "`{key}` has no row in the table");
        let is_word = |row| self.unknown.iter().any(|word| hint::is_meant(row, word));
        self.get(key).is_some() || row.is_some_and(is_word)
    }

    /// Every entry, in the order of the file, each key once.
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeRef<'_>> {
        self.entries.iter().map(|entry| NodeRef {
            node: entry.node,
            key: Some(entry.key),
            parent: Some(&self.at),
            step: PathStep::Key(entry.name),
            row: entry.row,
            is_entry: std::ptr::eq(entry.row, self.at.row),
        })
    }
}

/// Collects problems while the tree is read.
pub(super) struct TreeReader<'s> {
    /// Access to the files that the document names.
    pub(super) files: &'s dyn FileAccess,
    /// Problems found so far.
    pub(super) problems: Vec<Problem>,
    name: &'s Path,
    text: &'s str,
}

impl<'s> TreeReader<'s> {
    /// A reader of the document `text`, called `name` in messages.
    pub(super) fn new(name: &'s Path, text: &'s str, files: &'s dyn FileAccess) -> Self {
        Self {
            files,
            problems: Vec::new(),
            name,
            text,
        }
    }

    /// Reports a problem at any place.
    pub(super) fn report(
        &mut self,
        severity: Severity,
        place: SourcePlace,
        path: String,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                message: message.into(),
                hint: hint.into(),
                ..self.problem(severity, place, path)
            });
        }
    }

    /// A problem at any place, without its texts and not reported.
    pub(super) fn problem(&self, severity: Severity, place: SourcePlace, path: String) -> Problem {
        Problem {
            severity,
            file: self.name.to_owned(),
            place,
            path,
            message: String::new(),
            hint: String::new(),
            line_text: line_around(self.text, place.start).to_owned(),
        }
    }

    /// An error in a value.
    pub(super) fn error(
        &mut self,
        at: NodeRef<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(Severity::Error, at.node.place, at.path(), message, hint);
    }

    /// An error about a key, or about what is missing behind it.
    pub(super) fn error_at_key(
        &mut self,
        at: NodeRef<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(Severity::Error, at.key_place(), at.path(), message, hint);
    }

    /// A warning about a key.
    pub(super) fn warn_at_key(
        &mut self,
        at: NodeRef<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(Severity::Warning, at.key_place(), at.path(), message, hint);
    }

    /// `path` as the file means it: relative to the directory of the configuration file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.name
            .parent()
            .map_or_else(|| PathBuf::from(path), |directory| directory.join(path))
    }

    /// True if an error was reported after the first `reported` problems.
    pub(super) fn has_errors_since(&self, reported: usize) -> bool {
        let is_error = |problem: &Problem| problem.severity == Severity::Error;
        self.problems.iter().skip(reported).any(is_error)
    }

    /// Reports a value that cannot be; a hint of the table goes before `hint`.
    pub(super) fn wrong_value(
        &mut self,
        at: NodeRef<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let known = at
            .scalar()
            .and_then(|text| hint::for_wrong_value(at.row, text));
        self.error(at, message, known.unwrap_or_else(|| hint.into()));
    }

    /// Reports a value of the wrong kind, or one out of range.
    pub(super) fn wrong_kind(&mut self, at: NodeRef<'_>, wanted: &str, hint: &str) {
        let found = match &at.node.kind {
            NodeKind::Null => "nothing",
            NodeKind::Scalar { text, .. } => {
                let found = quote(text);
                return self.wrong_value(at, format!("expected {wanted}, found {found}"), hint);
            }
            NodeKind::Map(_) => "a map",
            NodeKind::List(_) => "a list",
        };
        let message = format!("expected {wanted}, found {found}");
        match at.node.kind {
            NodeKind::Null => self.error_at_key(at, message, hint),
            _ => self.error(at, message, hint),
        }
    }

    /// Like [`Self::wrong_kind`], where quotes may be what is wrong.
    pub(super) fn wrong_plain(&mut self, at: NodeRef<'_>, wanted: &str, hint: &str) {
        if let NodeKind::Scalar { text, quoted: true } = &at.node.kind {
            let found = quote(&format!("\"{text}\""));
            self.wrong_value(
                at,
                format!("expected {wanted}, found {found} in quotes"),
                hint,
            );
        } else {
            self.wrong_kind(at, wanted, hint);
        }
    }

    /// A map with the keys that the table has for this place; unknown and repeated keys are
    /// reported.
    pub(super) fn section<'a>(&mut self, at: NodeRef<'a>) -> Option<Section<'a>> {
        let path = at.section_path();
        let rows = schema::section(&path);
        let known: Vec<&str> = rows.iter().map(|row| row.name()).collect();
        let hint = format!("it may have the keys {}", list_of_all(&known));
        let mut found = self.map(at, &hint)?;
        found.entries.retain_mut(|entry| {
            if let Some(row) = rows.iter().find(|row| row.name() == entry.name) {
                entry.row = row;
                return true;
            }
            let place = NodeRef {
                node: entry.node,
                key: Some(entry.key),
                parent: Some(&found.at),
                step: PathStep::Key(entry.name),
                ..found.at
            };
            let help = hint::for_key(&path, entry.name, place.scalar(), &known);
            self.error_at_key(place, format!("unknown key {}", quote(entry.name)), help);
            found.unknown.push(entry.name);
            false
        });
        Some(found)
    }

    /// A map with names the user chooses; repeated ones are reported.
    pub(super) fn map<'a>(&mut self, at: NodeRef<'a>, hint: &str) -> Option<Section<'a>> {
        let NodeKind::Map(entries) = &at.node.kind else {
            self.wrong_kind(at, "keys and values", hint);
            return None;
        };
        let mut kept: Vec<MapEntry<'a>> = Vec::with_capacity(entries.len());
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (key, node) in entries {
            let NodeKind::Scalar { text: name, .. } = &key.kind else {
                self.report(
                    Severity::Error,
                    key.place,
                    at.path(),
                    "a key must be a word".to_owned(),
                    "write `key: value`; a value that begins with `[` or `{` needs quotes"
                        .to_owned(),
                );
                continue;
            };
            let here = NodeRef {
                node,
                key: Some(key),
                parent: Some(&at),
                step: PathStep::Key(name),
                ..at
            };
            if let Some(line) = seen.insert(name, key.place.line) {
                seen.insert(name, line);
                self.error_at_key(
                    here,
                    format!("{} is given twice", quote(name)),
                    format!("remove one; the first is in line {line}"),
                );
            } else {
                kept.push(MapEntry {
                    name,
                    key,
                    node,
                    row: at.row,
                });
            }
        }
        Some(Section {
            at,
            entries: kept,
            unknown: Vec::new(),
        })
    }

    /// Checks a name that the user chose: it becomes a metric label and a word of log lines.
    pub(super) fn name(&mut self, at: NodeRef<'_>, what: &str) {
        let name = at.last_key();
        if hint::is_old_boolean(name) {
            self.error_at_key(
                at,
                format!(
                    "{} cannot be the name of a {what}: YAML 1.1 reads it as a boolean",
                    quote(name)
                ),
                "choose another name",
            );
            return;
        }
        let fine = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !fine {
            self.error_at_key(
                at,
                format!("{} cannot be the name of a {what}", quote(name)),
                "use 1 to 64 letters, digits, `_`, `-` and `.`",
            );
        }
    }

    /// The entries of a list.
    pub(super) fn list<'b>(
        &mut self,
        at: &'b NodeRef<'b>,
        wanted: &str,
        hint: &str,
    ) -> Vec<NodeRef<'b>> {
        if let NodeKind::List(items) = &at.node.kind {
            items
                .iter()
                .enumerate()
                .map(|(index, node)| NodeRef {
                    node,
                    key: None,
                    parent: Some(at),
                    step: PathStep::Index(index),
                    row: at.row,
                    is_entry: true,
                })
                .collect()
        } else {
            self.wrong_kind(*at, wanted, hint);
            Vec::new()
        }
    }

    /// The entries of a list, or a single value as a list of one.
    pub(super) fn one_or_more<'b>(
        &mut self,
        at: &'b NodeRef<'b>,
        wanted: &str,
        hint: &str,
    ) -> Vec<NodeRef<'b>> {
        match &at.node.kind {
            NodeKind::Scalar { .. } => vec![*at],
            NodeKind::List(items) if items.is_empty() => {
                self.error(*at, format!("expected {wanted}, found an empty list"), hint);
                Vec::new()
            }
            _ => self.list(at, wanted, hint),
        }
    }
}

/// Writes `value` into `slot` when it could be read.
pub(super) fn assign<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn line_around(text: &str, offset: usize) -> &str {
    let offset = offset.min(text.len());
    let before = text.get(..offset).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..).unwrap_or_default();
    line.split(['\n', '\r']).next().unwrap_or_default()
}
