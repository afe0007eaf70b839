//! Configuration: parsing, reporting and comparing never panic.

use std::path::Path;

use balancer::config::{NoFiles, diff::diff, parse, problem::render};

/// Parses `data` as a configuration file and renders its problems.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse(Path::new("fuzz.yaml"), &text, &NoFiles) {
        Ok(loaded) => {
            drop(render(&loaded.warnings, false));
            assert!(diff(&loaded.config, &loaded.config).is_empty());
        }
        Err(problems) => {
            assert!(problems.errors() > 0, "refused without an error");
            drop(problems.render());
            drop(problems.to_json());
            for problem in &problems.0 {
                assert!(problem.place.line > 0, "no place: {problem}");
            }
        }
    }
}
