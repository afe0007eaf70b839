//! Links in the documents lead somewhere: to a file of the project, and to a heading of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders below the root that hold no documents of the project.
const SKIPPED_FOLDERS: [&str; 2] = ["target", ".git"];

/// The beginning of docs/comparison.md, whose links are those of that file.
const PART_OF_A_DOCUMENT: &str = "differential/comparison_head.md";

/// All documents, by their path from the root.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if path.is_dir() {
                if !SKIPPED_FOLDERS
                    .iter()
                    .any(|name| entry.file_name() == *name)
                {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md")
                && !path.ends_with(PART_OF_A_DOCUMENT)
            {
                found.push(path);
            }
        }
    }
    found
}

/// The text outside of code blocks.
fn without_code_blocks(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// The targets of `[text](target)` and `[name]: target`, each with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in without_code_blocks(text) {
        for part in line.split("](").skip(1) {
            found.push((number, part.split([')', ' ']).next().unwrap().to_owned()));
        }
        if let Some((name, target)) = line.split_once("]: ")
            && name.starts_with('[')
        {
            found.push((number, target.trim().to_owned()));
        }
    }
    found
}

/// The anchors that a document offers, made from its headings as code hosts make them.
fn anchors(text: &str) -> Vec<String> {
    let mut plain: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for (_, line) in without_code_blocks(text) {
        let Some(heading) = line.trim_start_matches('#').strip_prefix(' ') else {
            continue;
        };
        if !line.starts_with('#') {
            continue;
        }
        let anchor: String = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let same = plain.iter().filter(|other| **other == anchor).count();
        found.push(match same {
            0 => anchor.clone(),
            _ => format!("{anchor}-{same}"),
        });
        plain.push(anchor);
    }
    found
}

/// A link that leads nowhere, as a message.
fn broken(document: &Path, target: &str) -> Option<String> {
    // Other hosts are not asked, and comparisons and releases exist where the project is published.
    if target.contains("://")
        || target.starts_with("mailto:")
        || target.contains("/compare/")
        || target.contains("/releases/")
    {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        document.to_path_buf()
    } else {
        document.parent().unwrap().join(file)
    };
    if !path.exists() {
        return Some(format!("no file `{file}`"));
    }
    let has_anchor = anchor.is_empty()
        || anchors(&fs::read_to_string(&path).unwrap())
            .iter()
            .any(|known| known == anchor);
    (!has_anchor).then(|| format!("no heading `#{anchor}`"))
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut count = 0;
    let mut all = Vec::new();
    for document in documents() {
        for (line, target) in links(&fs::read_to_string(&document).unwrap()) {
            count += 1;
            if let Some(problem) = broken(&document, &target) {
                all.push(format!("{}:{line}: {problem}", document.display()));
            }
        }
    }
    assert!(count > 30, "only {count} links were found");
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Source files that a document names in backquotes: `proxy/tcp.rs`, `reason.rs`,
/// `tests/layers.rs`.
fn named_files(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in without_code_blocks(text) {
        for word in line.split('`').skip(1).step_by(2) {
            let file = word.split("::").next().unwrap();
            if Path::new(file)
                .extension()
                .is_some_and(|extension| extension == "rs")
                && !file.contains(['{', ' ', '*'])
            {
                found.push((number, file.to_owned()));
            }
        }
    }
    found
}

/// All sources, by their path from the root.
fn source_files() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "fuzz/src"]
        .iter()
        .map(|folder| root.join(folder))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(format!("/{}", path.strip_prefix(root).unwrap().display()));
            }
        }
    }
    found
}

#[test]
fn every_source_file_that_a_document_names_is_there() {
    let sources = source_files();
    let mut count = 0;
    let mut all = Vec::new();
    for document in documents() {
        // The changelog names files as they were.
        if document.ends_with("CHANGELOG.md") {
            continue;
        }
        for (line, file) in named_files(&fs::read_to_string(&document).unwrap()) {
            count += 1;
            if !sources
                .iter()
                .any(|source| source.ends_with(&format!("/{file}")))
            {
                all.push(format!("{}:{line}: no file `{file}`", document.display()));
            }
        }
    }
    assert!(count > 50, "only {count} files were found");
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_link_without_a_target_is_found() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    assert_eq!(
        broken(&readme, "docs/none.md"),
        Some("no file `docs/none.md`".to_owned())
    );
    assert!(broken(&readme, "docs/reasons.md#no-such-reason").is_some());
    assert_eq!(broken(&readme, "docs/reasons.md"), None);
    let text = "a [b](c.md#d) and [e](f)\n```\n[x](y)\n```\n[g]: h\n";
    assert_eq!(
        links(text),
        [
            (1, "c.md#d".to_owned()),
            (1, "f".to_owned()),
            (5, "h".to_owned())
        ]
    );
    assert_eq!(
        anchors("# A `b`, c\n## A b c\n# A `b`, c\n"),
        ["a-b-c", "a-b-c-1", "a-b-c-2"]
    );
}
