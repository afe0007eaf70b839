//! A module imports only from strictly lower floors, so that the lower ones can be read and tested without the upper.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The floors of ARCHITECTURE.md, from the ground up.
const FLOORS: [&[&str]; 11] = [
    &["reason", "base"],
    &["config"],
    &["telemetry"],
    &["pool", "route", "http1", "http2"],
    &["net"],
    &["snapshot"],
    &["proxy", "health"],
    &["admin"],
    &["runtime"],
    &["cli"],
    &["main"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Blanks out comments, strings and character literals, so that words in them are no imports; keeps every line end.
fn code_only(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    let starts = |at: usize, text: &str| {
        bytes[at..]
            .iter()
            .take(text.len())
            .copied()
            .eq(text.chars())
    };
    let blank = |code: &mut String, from: usize, to: usize| {
        code.extend(
            bytes[from..to]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
    };
    while at < bytes.len() {
        let from = at;
        if starts(at, "//") {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if at >= bytes.len() {
                    break;
                } else if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    at += 1;
                }
            }
        } else if let Some(hashes) = raw_string(&bytes, at) {
            let end = format!("\"{}", "#".repeat(hashes));
            at += 2 + hashes;
            while at < bytes.len() && !starts(at, &end) {
                at += 1;
            }
            at = (at + end.len()).min(bytes.len());
        } else if bytes[at] == '"' {
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at = (at + 1).min(bytes.len());
        } else if bytes[at] == '\'' && bytes.get(at + 1) == Some(&'\\') {
            at += 3;
            while at < bytes.len() && bytes[at] != '\'' {
                at += 1;
            }
            at = (at + 1).min(bytes.len());
        } else if bytes[at] == '\'' && bytes.get(at + 2) == Some(&'\'') {
            at += 3;
        } else {
            code.push(bytes[at]);
            at += 1;
            continue;
        }
        blank(&mut code, from, at);
    }
    code
}

/// The number of `#` when a raw string begins at `at`.
fn raw_string(source: &[char], at: usize) -> Option<usize> {
    let word_before = at > 0 && (source[at - 1].is_alphanumeric() || source[at - 1] == '_');
    if source[at] != 'r' || word_before && source[at - 1] != 'b' {
        return None;
    }
    let hashes = source[at + 1..].iter().take_while(|c| **c == '#').count();
    (source.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// The top-level modules that `source` names by `crate::`, each with its line, counted from 1.
fn imports(source: &str) -> Vec<(usize, String)> {
    let code = code_only(source);
    let mut found = Vec::new();
    for start in ["crate::", "balancer::"] {
        for (position, _) in code.match_indices(start) {
            let before = code[..position].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let rest = &code[position + start.len()..];
            for (offset, name) in first_segments(rest) {
                let line = code[..position + start.len() + offset]
                    .matches('\n')
                    .count()
                    + 1;
                found.push((line, name));
            }
        }
    }
    found.sort();
    found
}

/// The first segments after `crate::`: one word, or the words at the top level of a `{…}` list.
fn first_segments(rest: &str) -> Vec<(usize, String)> {
    let word = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(list) = rest.strip_prefix('{') else {
        return vec![(0, word(rest))];
    };
    let mut depth = 0_usize;
    let mut expects_name = true;
    let mut found = Vec::new();
    for (offset, c) in list.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => expects_name = true,
            _ if depth == 0 && expects_name && (c.is_alphabetic() || c == '_') => {
                found.push((offset + 1, word(&list[offset..])));
                expects_name = false;
            }
            _ => (),
        }
    }
    found
}

/// Every breach of the floors in one file: `file:line: …`.
fn breaches(file: &str, source: &str) -> Vec<String> {
    let own = file
        .split('/')
        .next()
        .map(|name| name.trim_end_matches(".rs"))
        .unwrap();
    let Some(own_floor) = floor(own) else {
        return vec![format!(
            "src/{file}:1: module `{own}` has no floor: add it to tests/floors.rs"
        )];
    };
    imports(source)
        .into_iter()
        .filter(|(_, name)| name != own)
        .filter_map(|(line, name)| match floor(&name) {
            Some(floor) if floor < own_floor => None,
            Some(floor) => Some(format!(
                "src/{file}:{line}: `{own}` (floor {own_floor}) imports `{name}` (floor {floor})"
            )),
            // An item at the crate root belongs to no floor, and lib.rs has none.
            None => Some(format!(
                "src/{file}:{line}: `{name}` has no floor: add it to tests/floors.rs"
            )),
        })
        .collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_module_imports_only_from_lower_floors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    let mut all = Vec::new();
    for path in files {
        let file = path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        // lib.rs only lists the modules.
        if file != "lib.rs" {
            all.extend(breaches(&file, &fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn an_import_from_above_or_beside_is_found_with_its_line() {
    let bad = "//! crate::cli in a comment\nuse std::fmt;\nuse crate::{\n    base::{clock, rng},\n    proxy::http,\n    route,\n};\nfn f() { crate::runtime::run(\"crate::admin\"); }\n";
    assert_eq!(
        breaches("pool/mod.rs", bad),
        [
            "src/pool/mod.rs:5: `pool` (floor 3) imports `proxy` (floor 6)",
            "src/pool/mod.rs:6: `pool` (floor 3) imports `route` (floor 3)",
            "src/pool/mod.rs:8: `pool` (floor 3) imports `runtime` (floor 8)",
        ]
    );
}

#[test]
fn what_is_allowed_is_not_reported() {
    let good = "use crate::{config::model, reason::Reason, pool::backend};\n/* crate::cli */ const A: &str = r#\"crate::cli \" \"#;\nconst Q: char = '\"'; use crate::base::clock; fn f<'a>(x: &'a str) {}\n";
    assert_eq!(breaches("pool/policy/mod.rs", good), [""; 0]);
}

#[test]
fn a_module_without_a_floor_is_reported() {
    assert_eq!(breaches("extra.rs", "").len(), 1);
    assert_eq!(breaches("net/mod.rs", "use crate::extra::x;").len(), 1);
}
