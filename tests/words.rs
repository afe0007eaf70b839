//! Plain words, everywhere: the refused ones and their replacements, doc comments that say what a
//! thing is, and type names that can be searched for.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Refused words and phrases, each with what to write. A `*` at the end stands for any ending.
const REFUSED: &[(&str, &str)] = &[
    ("nobody", "no client, no backend, none"),
    ("whoever", "the client, the reader, the caller"),
    ("whatever", "name what it is, or `any`"),
    ("anew", "again"),
    ("hence", "so"),
    ("thus", "so"),
    ("hereby", "leave it out"),
    ("farewell*", "shutdown, close"),
    (
        "introduc*",
        "a PROXY header is read or sent; a feature is added",
    ),
    ("sentence*", "ejection, detail, message, promise"),
    ("payment*", "charge"),
    ("pay", "charge, cost"),
    ("pays", "charge, cost"),
    ("paid", "charge, cost"),
    ("paying", "charge, cost"),
    ("fate*", "outcome, close reason"),
    ("digested", "read, received"),
    ("digesting", "reading, receiving"),
    ("has come", "is here, was received"),
    ("have come", "are here, were received"),
    ("is no more", "is gone, ended"),
    ("so many", "say how many, or `too many`"),
    ("what is left of", "the remaining"),
    ("tells of", "names, reports"),
    ("gives word", "reports"),
];

/// Words with which a doc comment must not begin: its first line names the thing, or says what the
/// function does.
const QUESTION_WORDS: &[&str] = &[
    "What",
    "Who",
    "Whom",
    "Whose",
    "Whether",
    "Why",
    "When",
    "Where",
    "Which",
    "How",
    "Whoever",
    "Whatever",
    "Whichever",
    "By when",
    "For how",
    "From where",
    "Until when",
    "Of what",
    "To what",
    "In what",
    "With what",
    "On what",
    "At what",
];

/// Columns that a line of prose in source may have.
const MAX_PROSE_COLUMNS: usize = 100;

/// Kinds of files that people read.
const EXTENSIONS: &[&str] = &[
    "rs", "md", "yaml", "yml", "txt", "sh", "py", "toml", "service", "sysusers",
];

/// Files that list the refused words.
const LISTS: &[&str] = &["tests/words.rs", ".ci/commit-msg"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files that people read, by their path from the root.
fn files() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = path.to_str().unwrap().to_owned();
            let is_hidden = name.starts_with('.') && name != ".ci" && name != ".github";
            if entry.file_type().unwrap().is_dir() {
                if !is_hidden && entry.file_name() != "target" {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
                && !LISTS.contains(&name.as_str())
            {
                found.insert(name, fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    assert!(found.len() > 300, "the files were not found");
    found
}

/// Panics with all complaints, if there are any.
fn expect_none(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "{} places:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

/// The text of a line without the marks of comments.
fn prose(line: &str) -> &str {
    line.trim_start()
        .trim_start_matches(['/', '!', '#', '*', '-', '>'])
        .trim()
}

/// The refused words of a text, each as `file:line: …`. A phrase is found over the end of a line
/// too.
fn refused_words(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(prose).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let mut joined = line.to_lowercase();
        let end = joined.len();
        if let Some(next) = lines.get(index + 1) {
            joined.push(' ');
            joined.push_str(&next.to_lowercase());
        }
        for (word, instead) in REFUSED {
            if position(&joined, word).is_some_and(|at| at < end) {
                found.push(format!(
                    "{file}:{}: `{word}` is refused; write: {instead}",
                    index + 1
                ));
            }
        }
    }
    found
}

/// Where a word stands in a text in lower case. `_` parts words, as in names of functions.
fn position(text: &str, word: &str) -> Option<usize> {
    let (word, any_ending) = match word.strip_suffix('*') {
        Some(start) => (start, true),
        None => (word, false),
    };
    text.match_indices(word)
        .find(|(at, _)| {
            let before = text[..*at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            let parts = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
            parts(before) && (any_ending || parts(after))
        })
        .map(|(at, _)| at)
}

/// Doc comments of a source that open with a question word, each as `file:line: …`.
fn questions(file: &str, source: &str) -> Vec<String> {
    let is_doc = |line: &str| line.starts_with("///") || line.starts_with("//!");
    let mut before = "";
    let mut found = Vec::new();
    for (index, line) in source.lines().map(str::trim_start).enumerate() {
        if is_doc(line) && !is_doc(before) {
            let text = line[3..].trim_start();
            let question = QUESTION_WORDS.iter().find(|word| {
                text.strip_prefix(**word)
                    .is_some_and(|after| !after.starts_with(char::is_alphanumeric))
            });
            if let Some(word) = question {
                found.push(format!(
                    "{file}:{}: a doc comment opens with `{word}`: name the thing, or say what the function does",
                    index + 1
                ));
            }
        }
        before = line;
    }
    found
}

/// Type names of sources with the places where each is declared.
fn type_names(files: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, source) in files {
        for (index, line) in source.lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|word| {
                word.starts_with("pub") || word.ends_with(')') || *word == "unsafe"
            });
            let kind = words.next();
            let is_associated = kind == Some("type") && line.starts_with(' ');
            if matches!(kind, Some("struct" | "enum" | "trait" | "type" | "union"))
                && !is_associated
            {
                let name: String = words
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let places = found.entry(name).or_default();
                places.push(format!("{file}:{}", index + 1));
            }
        }
    }
    found
}

fn is_rust(file: &str) -> bool {
    Path::new(file)
        .extension()
        .is_some_and(|extension| extension == "rs")
}

fn only(
    files: BTreeMap<String, String>,
    wanted: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    files.into_iter().filter(|(file, _)| wanted(file)).collect()
}

#[test]
fn no_file_has_a_refused_word() {
    let all: Vec<String> = files()
        .iter()
        .flat_map(|(file, text)| refused_words(file, text))
        .collect();
    expect_none(&all);
}

#[test]
fn no_doc_comment_opens_with_a_question_word() {
    let all: Vec<String> = files()
        .iter()
        .filter(|(file, _)| is_rust(file))
        .flat_map(|(file, source)| questions(file, source))
        .collect();
    expect_none(&all);
}

#[test]
fn prose_in_source_is_wrapped_at_100_columns() {
    let mut all = Vec::new();
    for (file, source) in only(files(), is_rust) {
        for (index, line) in source.lines().enumerate() {
            let columns = line.chars().count();
            // A word without a blank, such as a link, cannot be wrapped.
            let can_wrap = prose(line).contains(' ');
            if line.trim_start().starts_with("//") && columns > MAX_PROSE_COLUMNS && can_wrap {
                all.push(format!("{file}:{}: {columns} columns", index + 1));
            }
        }
    }
    expect_none(&all);
}

#[test]
fn a_type_name_means_one_thing() {
    let sources = only(files(), |file| file.starts_with("src/"));
    let all: Vec<String> = type_names(&sources)
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("`{name}` is declared at {}", places.join(", ")))
        .collect();
    expect_none(&all);
}

#[test]
fn at_most_a_third_of_the_type_names_are_one_word() {
    let names = type_names(&only(files(), |file| file.starts_with("src/")));
    let one_word: Vec<&String> = names
        .keys()
        .filter(|name| name.chars().skip(1).all(|c| !c.is_uppercase()))
        .collect();
    assert!(
        one_word.len() * 3 <= names.len(),
        "{} of {} are one word, which cannot be searched for: {one_word:?}",
        one_word.len(),
        names.len()
    );
}

#[test]
fn refused_words_are_found_in_names_and_over_line_ends() {
    let text = "/// What has\n/// come.\nfn take_fate() {}\nlet payload = \"Thus\";\n";
    assert_eq!(
        refused_words("a.rs", text),
        [
            "a.rs:1: `has come` is refused; write: is here, was received",
            "a.rs:3: `fate*` is refused; write: outcome, close reason",
            "a.rs:4: `thus` is refused; write: so",
        ]
    );
}

#[test]
fn a_question_is_found_at_the_start_of_a_doc_comment_only() {
    let source = "//! Whoever reads.\n\n/// By when it ends.\n/// What else.\n/// Whatsoever\n    /// The time.\n// What\n";
    let found = questions("a.rs", source);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("a.rs:1: ") && found[1].starts_with("a.rs:3: "));
}

#[test]
fn types_are_counted_with_any_visibility() {
    let source = "pub(in crate::a) struct A;\npub(crate) enum B<T> {}\nstruct A {}\n    type Output = u8;\nimpl struct_like {}\n";
    let names = type_names(&BTreeMap::from([("a.rs".to_owned(), source.to_owned())]));
    assert_eq!(names["A"], ["a.rs:1", "a.rs:3"]);
    assert_eq!(names.len(), 2, "{names:?}");
}
