//! `balancer check`: reads a file as `run` would, binds nothing, and says everything that is wrong with it.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use serde_json::json;

use super::output::{complain, say};
use crate::config::{
    self, Loaded,
    problem::{self, Problem},
};

/// Exit code 0 when the file may be run, with or without warnings, and 1 when it may not.
pub(super) fn run(file: &Path, as_json: bool) -> ExitCode {
    let result = config::load(file);
    let (ok, problems): (bool, &[Problem]) = match &result {
        Ok(loaded) => (true, &loaded.warnings),
        Err(problems) => (false, &problems.0),
    };
    if as_json {
        let problems: Vec<_> = problems.iter().map(Problem::to_json).collect();
        say(&json!({"ok": ok, "file": file.to_string_lossy(), "problems": problems}).to_string());
    } else {
        if !problems.is_empty() {
            complain(&problem::render(problems, std::io::stderr().is_terminal()));
        }
        if let Ok(loaded) = &result {
            say(&summary(file, loaded));
        }
    }
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn summary(file: &Path, loaded: &Loaded) -> String {
    let config = &loaded.config;
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    format!(
        "{}: ok: {}, {}, {}, {}",
        file.display(),
        counted(config.listeners.len(), "listener"),
        counted(config.routes.len(), "route"),
        counted(config.pools.len(), "pool"),
        counted(backends, "backend"),
    )
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
