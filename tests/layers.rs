//! A module imports only from lower layers, and files of one module do not import each other in a
//! circle, so that each file can be read and tested without those above it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The layers of ARCHITECTURE.md, from the lowest up.
const LAYERS: [&[&str]; 14] = [
    &["reason", "base"],
    &["config"],
    &["telemetry"],
    &["http"],
    &["pool", "route", "http1", "http2"],
    &["net"],
    &["h2"],
    &["discovery"],
    &["snapshot"],
    &["proxy", "health"],
    &["admin"],
    &["runtime"],
    &["cli"],
    &["main"],
];

/// Imports that close a circle. A stream and its kinds have to: TLS is built on a stream and is
/// one.
const ALLOWED_CIRCLES: &[(&str, &str)] = &[("net::stream", "net::tls")];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Blanks out comments, strings and character literals, so that words in them are no imports; keeps
/// every line end.
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

/// A path in the code that begins with `crate`, `balancer`, `super` or `self`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ImportPath {
    /// Counted from 1.
    line: usize,
    segments: Vec<String>,
}

/// All paths of the code, `{…}` lists taken apart.
fn import_paths(code: &str) -> Vec<ImportPath> {
    let mut found = Vec::new();
    for root in ["crate", "balancer", "super", "self"] {
        for (position, _) in code.match_indices(&format!("{root}::")) {
            let before = code[..position].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                expand(code, position, &[], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that begin at `at`, each after `prefix`, and returns where they end.
fn expand(code: &str, at: usize, prefix: &[String], found: &mut Vec<ImportPath>) -> usize {
    let word_end = |from: usize| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        code[from..]
            .find(|c| !word(c))
            .map_or(code.len(), |n| from + n)
    };
    let mut segments = prefix.to_vec();
    let mut position = at;
    loop {
        let end = word_end(position);
        if end > position {
            segments.push(code[position..end].to_owned());
        }
        position = end;
        if !code[position..].starts_with("::") {
            break;
        }
        position += 2;
        if code[position..].starts_with('{') {
            return expand_list(code, position + 1, &segments, found);
        }
    }
    let line = code[..at].matches('\n').count() + 1;
    found.push(ImportPath { line, segments });
    position
}

/// Adds the paths of a `{…}` list whose first entry begins at `at`, and returns where the list
/// ends.
fn expand_list(code: &str, at: usize, prefix: &[String], found: &mut Vec<ImportPath>) -> usize {
    let mut position = at;
    while position < code.len() {
        let c = code[position..].chars().next().unwrap();
        if c == '}' {
            return position + 1;
        }
        if c.is_alphabetic() || c == '_' {
            position = expand(code, position, prefix, found);
            // What an import is called in this file (`as name`) is no path.
            let separator = code[position..].find([',', '}']).unwrap_or(0);
            position += separator;
        } else {
            position += c.len_utf8();
        }
    }
    position
}

/// Every breach of the layers in one file: `file:line: …`.
fn breaches(file: &str, source: &str) -> Vec<String> {
    let own = file.split('/').next().unwrap().trim_end_matches(".rs");
    let Some(own_layer) = layer(own) else {
        return vec![format!(
            "src/{file}:1: module `{own}` has no layer: add it to tests/layers.rs"
        )];
    };
    let mut found: Vec<(usize, String)> = import_paths(&code_only(source))
        .into_iter()
        .filter(|path| path.segments[0] == "crate" || path.segments[0] == "balancer")
        .filter_map(|path| Some((path.line, path.segments.get(1)?.clone())))
        .collect();
    found.sort();
    found.dedup();
    found
        .into_iter()
        .filter(|(_, name)| name != own)
        .filter_map(|(line, name)| match layer(&name) {
            Some(layer) if layer < own_layer => None,
            Some(layer) => Some(format!(
                "src/{file}:{line}: `{own}` (layer {own_layer}) imports `{name}` (layer {layer})"
            )),
            // An item at the crate root belongs to no layer, and lib.rs has none.
            None => Some(format!(
                "src/{file}:{line}: `{name}` has no layer: add it to tests/layers.rs"
            )),
        })
        .collect()
}

/// `a/b/mod.rs` and `a/b.rs` are the module `a::b`.
fn module_path(file: &str) -> String {
    file.trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .replace('/', "::")
}

/// The files that each file imports, by module path, with the line of the first import. A file may
/// use what the module above it declares: that is how Rust lets a module keep its parts private, so
/// it is no import here. Code that only tests build does not count.
fn imports_of_files(
    sources: &BTreeMap<String, String>,
) -> BTreeMap<String, BTreeMap<String, usize>> {
    let tests_only: BTreeSet<String> = sources
        .iter()
        .flat_map(|(file, source)| test_modules(file, source))
        .collect();
    let is_test = |module: &str| {
        tests_only
            .iter()
            .any(|test| module == test || module.starts_with(&format!("{test}::")))
    };
    let modules: BTreeSet<String> = sources.keys().map(|file| module_path(file)).collect();
    let mut all = BTreeMap::new();
    for (file, source) in sources {
        let own = module_path(file);
        if is_test(&own) {
            continue;
        }
        let code = code_only(source);
        let mut found = BTreeMap::new();
        for path in import_paths(without_inline_tests(&code)) {
            let Some(target) = resolve(&own, &path.segments, &modules) else {
                continue;
            };
            let is_above = format!("{own}::").starts_with(&format!("{target}::"));
            if !is_above && !is_test(&target) {
                found.entry(target).or_insert(path.line);
            }
        }
        all.insert(own, found);
    }
    all
}

/// The code before the unit tests that stand in the same file, which are its end.
fn without_inline_tests(code: &str) -> &str {
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let after = code[from + found..].trim_start_matches("#[cfg(test)]");
        let item = after.trim_start();
        if item.starts_with("mod ") && item.lines().next().unwrap().ends_with('{') {
            return &code[..from + found];
        }
        from += found + 1;
    }
    code
}

/// The modules that `file` declares for tests only, also those whose file has another name.
fn test_modules(file: &str, source: &str) -> Vec<String> {
    let own = module_path(file);
    let folder = if file.ends_with("mod.rs") {
        own.clone()
    } else {
        own.rsplit_once("::")
            .map_or(String::new(), |(folder, _)| folder.to_owned())
    };
    source
        .split("#[cfg(test)]")
        .skip(1)
        .filter_map(|after| {
            let item = after.split(';').next()?;
            if let Some(path) = item.trim_start().strip_prefix("#[path = \"") {
                let name = path.split('"').next()?;
                return Some(format!("{folder}::{}", module_path(name)));
            }
            let (_, name) = item
                .lines()
                .find(|line| !line.is_empty())?
                .split_once("mod ")?;
            Some(format!("{own}::{}", name.trim_end_matches(';')))
        })
        .collect()
}

/// The module that a path in `own` leads to: the longest part of it that is a file.
fn resolve(own: &str, segments: &[String], modules: &BTreeSet<String>) -> Option<String> {
    let mut at: Vec<&str> = match segments[0].as_str() {
        "crate" | "balancer" => Vec::new(),
        _ => own.split("::").collect(),
    };
    for segment in segments {
        match segment.as_str() {
            "crate" | "balancer" | "self" => (),
            "super" => {
                at.pop();
            }
            name => at.push(name),
        }
    }
    while !at.is_empty() {
        let module = at.join("::");
        if modules.contains(&module) {
            return Some(module);
        }
        at.pop();
    }
    None
}

/// One circle of imports if there is one, as lines of `file:line`.
fn circle(imports: &BTreeMap<String, BTreeMap<String, usize>>) -> Option<String> {
    let mut finished = BTreeSet::new();
    imports
        .keys()
        .find_map(|module| search(module, imports, &mut Vec::new(), &mut finished))
}

/// Looks for a circle depth first; `path` is how `module` was reached.
fn search(
    module: &str,
    imports: &BTreeMap<String, BTreeMap<String, usize>>,
    path: &mut Vec<String>,
    finished: &mut BTreeSet<String>,
) -> Option<String> {
    if let Some(start) = path.iter().position(|earlier| earlier == module) {
        path.push(module.to_owned());
        let steps = path[start..].windows(2).map(|pair| {
            let line = imports[&pair[0]][&pair[1]];
            format!("`{}`:{line} imports `{}`", pair[0], pair[1])
        });
        return Some(steps.collect::<Vec<_>>().join("\n"));
    }
    if finished.contains(module) {
        return None;
    }
    path.push(module.to_owned());
    for target in imports.get(module).into_iter().flat_map(BTreeMap::keys) {
        let found = search(target, imports, path, finished);
        if found.is_some() {
            return found;
        }
    }
    path.pop();
    finished.insert(module.to_owned());
    None
}

fn read_sources(directory: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            read_sources(&entry.path(), &format!("{name}/"), found);
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            found.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// All sources by their path below src; lib.rs only lists the modules.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read_sources(&root, "", &mut found);
    assert!(found.len() > 100, "the sources were not found: {found:?}");
    found.remove("lib.rs");
    found
}

#[test]
fn every_module_imports_only_from_lower_layers() {
    let all: Vec<String> = sources()
        .iter()
        .flat_map(|(file, source)| breaches(file, source))
        .collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let all = imports_of_files(&sources());
    let mut imports = all.clone();
    for (from, to) in ALLOWED_CIRCLES {
        imports
            .get_mut(*from)
            .and_then(|imports| imports.remove(*to));
    }
    if let Some(circle) = circle(&imports) {
        panic!("files import each other:\n{circle}");
    }
    for (from, to) in ALLOWED_CIRCLES {
        let mut with_one = imports.clone();
        let line = all.get(*from).and_then(|imports| imports.get(*to));
        if let Some(line) = line {
            let of_file = with_one.get_mut(*from).unwrap();
            of_file.insert((*to).to_owned(), *line);
        }
        assert!(
            circle(&with_one).is_some(),
            "`{from}` does not import `{to}` in a circle: strike that row of ALLOWED_CIRCLES"
        );
    }
}

#[test]
fn an_import_from_above_or_beside_is_found_with_its_line() {
    let bad = "//! crate::cli in a comment\nuse std::fmt;\nuse crate::{\n    base::{clock, rng},\n    proxy::http,\n    route,\n};\nfn f() { crate::runtime::run(\"crate::admin\"); }\n";
    assert_eq!(
        breaches("pool/mod.rs", bad),
        [
            "src/pool/mod.rs:5: `pool` (layer 4) imports `proxy` (layer 9)",
            "src/pool/mod.rs:6: `pool` (layer 4) imports `route` (layer 4)",
            "src/pool/mod.rs:8: `pool` (layer 4) imports `runtime` (layer 11)",
        ]
    );
}

#[test]
fn what_is_allowed_is_not_reported() {
    let good = "use crate::{config::model, reason::Reason, pool::backend};\n/* crate::cli */ const A: &str = r#\"crate::cli \" \"#;\nconst Q: char = '\"'; use crate::base::clock; fn f<'a>(x: &'a str) {}\n";
    assert_eq!(breaches("pool/policy/mod.rs", good), [""; 0]);
}

#[test]
fn a_module_without_a_layer_is_reported() {
    assert_eq!(breaches("extra.rs", "").len(), 1);
    assert_eq!(breaches("net/mod.rs", "use crate::extra::x;").len(), 1);
}

/// The circle among these files, each given with its source.
fn circle_among(files: &[(&str, &str)]) -> Option<String> {
    let sources = files
        .iter()
        .map(|(file, source)| ((*file).to_owned(), (*source).to_owned()))
        .collect();
    circle(&imports_of_files(&sources))
}

#[test]
fn a_circle_is_reported_with_the_lines_of_its_imports() {
    let found = circle_among(&[
        ("net/mod.rs", "mod a;\nmod b;\nmod c;\n"),
        (
            "net/a.rs",
            "use std::fmt;\nuse super::{b::{Thing as T, Other}, Shared};\n",
        ),
        ("net/b.rs", "\n\nfn f() { crate::net::c::run(); }\n"),
        ("net/c.rs", "use crate::net::a;\n"),
    ]);
    assert_eq!(
        found.unwrap(),
        "`net::a`:2 imports `net::b`\n`net::b`:3 imports `net::c`\n`net::c`:1 imports `net::a`"
    );
}

#[test]
fn a_child_may_use_its_parent_and_tests_may_use_anything() {
    let found = circle_among(&[
        (
            "net/mod.rs",
            "mod a;\nmod b;\npub use a::A;\nuse self::a::f;\n#[cfg(test)]\nmod bench;\n",
        ),
        (
            "net/a.rs",
            "use super::Shared;\nuse super::b::B;\n#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;\n",
        ),
        (
            "net/b.rs",
            "#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}\n",
        ),
        ("net/a_tests.rs", "use super::super::bench::run;\n"),
        ("net/bench.rs", "use super::a::A;\n"),
    ]);
    assert_eq!(found, None);
}
