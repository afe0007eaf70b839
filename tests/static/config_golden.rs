//! Every broken file of tests/golden/config gives exactly the messages beside it.
//!
//! `UPDATE_GOLDEN=1 cargo test --test static config_golden` rewrites the messages: read the
//! difference before you commit it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use balancer::config::{NoFiles, Problems, Severity, parse};

use crate::fixture_files::FixtureFiles;

fn inputs() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    files
}

/// The messages that a user sees for the file, and all its problems.
fn problems(path: &Path) -> Problems {
    let text = fs::read_to_string(path).unwrap();
    match parse(Path::new("balancer.yaml"), &text, &FixtureFiles) {
        Ok(loaded) => Problems(loaded.warnings),
        Err(problems) => problems,
    }
}

#[test]
fn every_broken_file_gives_its_messages() {
    let inputs = inputs();
    assert!(inputs.len() >= 65, "only {} files", inputs.len());
    let mut wrong = Vec::new();
    for path in inputs {
        let found = problems(&path).render();
        if found.is_empty() {
            wrong.push(format!("{} has no problem: delete it", path.display()));
            continue;
        }
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &found).unwrap();
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&found) {
            wrong.push(format!("{}:\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_problem_names_its_place_its_key_and_a_hint() {
    for path in inputs() {
        let text = fs::read_to_string(&path).unwrap();
        for problem in problems(&path).0 {
            let name = path.display();
            let line = text.lines().nth(problem.place.line - 1).unwrap_or_default();
            assert_eq!(problem.line_text, line, "{name}");
            assert!(problem.place.column <= line.chars().count() + 1, "{name}");
            assert!(!problem.message.is_empty(), "{name}");
            assert!(!problem.hint.is_empty(), "{name}: {}", problem.message);
            assert!(
                !problem.message.ends_with('.'),
                "{name}: {}",
                problem.message
            );
        }
    }
}

#[test]
fn warnings_do_not_refuse_a_file() {
    for path in inputs() {
        let found = problems(&path);
        let is_warning = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().ends_with("-warning.yaml"));
        assert_eq!(found.errors() == 0, is_warning, "{}", path.display());
        if is_warning {
            assert!(
                found
                    .0
                    .iter()
                    .all(|problem| problem.severity == Severity::Warning)
            );
        }
    }
}

#[test]
fn problems_are_json_objects_for_programs() {
    let text = "listeners: {web: {bind: \":80\", pool: ap}}\npools: {app: {backends: [h:1]}}\n";
    let problems = parse(Path::new("b.yaml"), text, &NoFiles).unwrap_err();
    assert_eq!(
        problems.to_json()[0],
        serde_json::json!({
            "severity": "error",
            "file": "b.yaml",
            "line": 1,
            "column": 38,
            "path": "listeners.web.pool",
            "message": "pool `ap` is not defined",
            "hint": "did you mean `app` (line 2)?",
        })
    );
}
