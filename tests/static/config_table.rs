//! The table of keys is the truth: readers, defaults, ranges and docs say what it says.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use balancer::{
    base::units::{show_duration, show_size},
    config::schema::{self, FilePart, KeyDefault, KeyRow, ValueKind, ValueShape},
};

use crate::one_key::{place, read, without_and_with};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_row_is_read_by_the_reader_of_its_section() {
    let unread: Vec<&str> = schema::rows()
        .filter(|row| {
            // A list of lists of lists is no value of any key.
            let [_, wrong] = without_and_with(row.path, "[[[]]]");
            let problems = read(&wrong).map_or_else(|problems| problems.0, |_| Vec::new());
            !problems
                .iter()
                .any(|found| found.path.starts_with(&place(row.path)))
        })
        .map(|row| row.path)
        .collect();
    assert!(unread.is_empty(), "accepted without being read: {unread:?}");
}

#[test]
fn a_default_in_the_table_is_what_holds_without_the_key() {
    let mut count = 0;
    for row in schema::rows() {
        let KeyDefault::Value(text) = row.default else {
            continue;
        };
        if row.path.starts_with("pools.NAME.discover.etcd") && !cfg!(feature = "etcd") {
            continue;
        }
        let [without, with] = without_and_with(row.path, text);
        let without = read(&without).unwrap_or_else(|found| panic!("{}: {found}", row.path));
        let with = read(&with).unwrap_or_else(|found| panic!("{} as {text}: {found}", row.path));
        assert_eq!(without, with, "{} is not {text} by default", row.path);
        count += 1;
    }
    assert!(count > 80, "only {count} defaults");
}

/// Texts just below and above the range of a row, and the words in which a message names the range.
fn beyond(row: &KeyRow) -> (Vec<String>, String) {
    let millisecond = Duration::from_millis(1);
    let below = |min: u64| min.checked_sub(1);
    match row.value.kind {
        ValueKind::Integer { min, max } => (
            [below(min), Some(max + 1)]
                .into_iter()
                .flatten()
                .map(|n| n.to_string())
                .collect(),
            format!("expected a number of {min} to {max}"),
        ),
        ValueKind::Duration { min, max } => (
            [min.checked_sub(millisecond), max.checked_add(millisecond)]
                .into_iter()
                .flatten()
                .map(|n| format!("{}ms", n.as_millis()))
                .collect(),
            format!(
                "expected a duration of {} to {}",
                show_duration(min),
                show_duration(max)
            ),
        ),
        // The nearest sizes that have a unit.
        ValueKind::Size { min, max } => (
            [below(min).map(|n| n >> 10), Some((max >> 10) + 1)]
                .into_iter()
                .flatten()
                .map(|n| format!("{n}KiB"))
                .collect(),
            format!(
                "expected a size of {} to {}",
                show_size(min),
                show_size(max)
            ),
        ),
        _ => (Vec::new(), String::new()),
    }
}

#[test]
fn values_just_outside_a_range_are_refused_and_the_range_is_named() {
    let mut count = 0;
    for row in schema::rows() {
        let (texts, message) = beyond(row);
        for text in texts {
            let written = match row.value.shape {
                ValueShape::Map { .. } if row.path == "errors.override" => {
                    format!("{{dns_error: {text}}}")
                }
                ValueShape::Map { .. } => format!("{{app: {text}}}"),
                _ => text.clone(),
            };
            let [_, file] = without_and_with(row.path, &written);
            let problems = read(&file).expect_err(row.path);
            let expected = format!("{message}, found `{text}`");
            let found = problems.0.iter().find(|found| {
                found.path.starts_with(&place(row.path))
                    && found.message.starts_with(&message)
                    && found.message.ends_with(&format!("found `{text}`"))
            });
            let found =
                found.unwrap_or_else(|| panic!("{}: no `{expected}`: {problems}", row.path));
            let is_zero = text.trim_end_matches(char::is_alphabetic) == "0";
            let hints: &[&str] = match row.value.or_word {
                Some(_) if is_zero => &["write `none` ", "write `auto`"],
                None if is_zero => &["the smallest value is "],
                _ => &["the nearest is "],
            };
            assert!(
                hints.iter().any(|hint| found.hint.starts_with(hint)),
                "{}: {}",
                row.path,
                found.hint
            );
            count += 1;
        }
    }
    assert!(count > 90, "only {count} values");
}

/// The values that a hint names, each in backquotes after a word that proposes it; not bare units.
fn proposed(hint: &str) -> Vec<&str> {
    let proposes = ["write ", "is ", "or ", "unit: ", "number: "];
    let parts: Vec<&str> = hint.split('`').collect();
    let pairs = parts.chunks_exact(2);
    let values = pairs.filter(|pair| proposes.iter().any(|word| pair[0].ends_with(word)));
    let is_value = |text: &&str| text.starts_with(|c: char| c.is_ascii_digit());
    values
        .map(|pair| pair[1])
        .filter(|text| is_value(text) || matches!(*text, "none" | "auto"))
        .collect()
}

#[test]
fn a_hint_for_a_number_proposes_values_that_the_key_takes() {
    let mut count = 0;
    for row in schema::rows().filter(|row| row.value.shape == ValueShape::Single) {
        let texts: &[&str] = match row.value.kind {
            ValueKind::Integer { .. } => &["0", "-1", "off", "99999999999", "'5'", "'0'"],
            ValueKind::Duration { .. } => &[
                "0", "0s", "off", "5", "7200", "0.5s", "1.5h", "3d", "400d", "90min", "2h3h",
            ],
            ValueKind::Size { .. } => &["0", "off", "5", "65536", "10m", "1tb", "900g"],
            ValueKind::Share => &["0", "0.2", "20", "200", "200%"],
            _ => continue,
        };
        for text in texts {
            let [_, file] = without_and_with(row.path, text);
            let Err(problems) = read(&file) else { continue };
            let is_here = |path: &str| path == place(row.path);
            for hint in problems.0.iter().filter(|found| is_here(&found.path)) {
                for value in proposed(&hint.hint) {
                    let [_, followed] = without_and_with(row.path, value);
                    let found = read(&followed).map_or_else(|found| found.0, |_| Vec::new());
                    // Rules that the key has with other keys are another matter.
                    let again = found.iter().find(|found| {
                        is_here(&found.path) && found.message.starts_with("expected ")
                    });
                    assert!(again.is_none(), "{} {text}: {value}: {again:?}", row.path);
                    count += 1;
                }
            }
        }
    }
    assert!(count > 200, "only {count} values");
}

#[test]
fn the_ends_of_a_range_are_accepted() {
    for row in schema::rows().filter(|row| row.value.shape == ValueShape::Single) {
        let ends = match row.value.kind {
            ValueKind::Integer { min, max } => [min.to_string(), max.to_string()],
            ValueKind::Duration { min, max } => [show_duration(min), show_duration(max)],
            _ => continue,
        };
        for text in ends {
            let [_, file] = without_and_with(row.path, &text);
            let found = read(&file)
                .err()
                .map(|problems| problems.0)
                .unwrap_or_default();
            let of_key = found.iter().find(|found| found.path == place(row.path));
            // `max_eject_for` may not be shorter than `eject_for`: a rule over two keys.
            let is_other_rule = of_key.is_some_and(|found| found.message.contains("shorter than"));
            assert!(
                of_key.is_none() || is_other_rule,
                "{} as {text}: {found:?}",
                row.path
            );
        }
    }
}

/// String literals of a source that stand alone as the name of a key: `"bind"`. Comments and unit
/// tests do not count.
fn literals(source: &str) -> Vec<(usize, String)> {
    let code = source
        .split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        // Neither comments nor fields of Debug.
        if line.trim_start().starts_with(['/', '.']) {
            continue;
        }
        for literal in line.split('"').skip(1).step_by(2) {
            found.push((number + 1, literal.to_owned()));
        }
    }
    found
}

fn sources(directory: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.strip_suffix(".rs").is_some() {
            let path = format!("{directory}/{name}");
            found.push((path.clone(), fs::read_to_string(root().join(path)).unwrap()));
        }
    }
    found
}

/// To add a key costs a field with its default, a row and a line in its reader: no other file of
/// the configuration knows keys by name.
#[test]
fn only_the_table_and_the_readers_know_keys_by_name() {
    let names: BTreeSet<&str> = schema::rows().map(KeyRow::name).collect();
    let mut wrong = Vec::new();
    for (file, source) in sources("src/config")
        .into_iter()
        .chain(sources("src/config/model"))
    {
        for (line, literal) in literals(&source) {
            // Parts of the file, which a reload names as a whole; words of values; fields of a
            // problem.
            let is_other = file.ends_with("value_set.rs")
                || file.ends_with("problem.rs")
                || file.ends_with("diff.rs") && ["listeners", "pools"].contains(&&*literal);
            if names.contains(&*literal) && !is_other {
                wrong.push(format!("{file}:{line}: {literal}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let mut read: BTreeSet<String> = BTreeSet::new();
    for (_, source) in sources("src/config/file") {
        read.extend(literals(&source).into_iter().map(|(_, literal)| literal));
    }
    let unread: Vec<&&str> = names.iter().filter(|name| !read.contains(**name)).collect();
    assert!(unread.is_empty(), "no reader names {unread:?}");
}

/// The parts of the page outside its tables, with one place between them for each table.
fn around_tables(page: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut in_table = false;
    for line in page.split_inclusive('\n') {
        let starts = line.starts_with("| key | value | default | meaning |");
        if starts {
            parts.push(String::new());
        }
        in_table = starts || in_table && line.starts_with('|');
        if !in_table {
            parts.last_mut().unwrap().push_str(line);
        }
    }
    parts
}

/// `UPDATE_DOCS=1` writes the tables.
#[test]
fn the_tables_of_the_reference_are_those_of_the_code() {
    let path = root().join("docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let around = around_tables(&page);
    assert_eq!(
        around.len(),
        FilePart::ALL.len() + 1,
        "a table for each part of the file"
    );
    let mut expected = around[0].clone();
    for (part, text) in FilePart::ALL.into_iter().zip(&around[1..]) {
        expected.push_str(&schema::table(part));
        expected.push_str(text);
    }
    update_or_compare(&path, &page, &expected);
}

/// `UPDATE_DOCS=1` writes the file.
#[test]
fn the_shipped_schema_is_that_of_the_code() {
    let path = root().join("balancer.schema.json");
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    let expected = format!("{:#}\n", schema::document());
    update_or_compare(&path, &shipped, &expected);
}

fn update_or_compare(path: &std::path::Path, found: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, expected).unwrap();
    } else if found != expected {
        let line = found
            .lines()
            .zip(expected.lines())
            .find(|(found, expected)| found != expected);
        panic!(
            "{} is not what the table of keys says, first here: {line:?}; run with UPDATE_DOCS=1",
            path.display()
        );
    }
}
