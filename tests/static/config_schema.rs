//! The JSON Schema takes every file that balancer takes, and refuses files that are wrong by their
//! form.

use std::{
    fs,
    path::{Path, PathBuf},
};

use balancer::config::schema;
use jsonschema::Validator;
use serde_json::Value;

use crate::one_key::read;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn validator() -> Validator {
    jsonschema::draft202012::new(&schema::document()).unwrap()
}

/// The document as an editor sees it: YAML 1.2 made JSON.
fn json(name: &Path, text: &str) -> Value {
    let options = serde_yaml::options! { strict_booleans: true };
    serde_yaml::from_str_with_options(text, options)
        .unwrap_or_else(|error| panic!("{}: {error}", name.display()))
}

fn golden() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tests/golden/config")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect()
}

#[test]
fn every_good_file_is_valid() {
    let validator = validator();
    let mut files: Vec<(PathBuf, String)> = golden()
        .into_iter()
        .chain([root().join("balancer.yaml")])
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    for page in fs::read_dir(root().join("docs")).unwrap() {
        let page = page.unwrap().path();
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text
            .split("```yaml\n")
            .skip(1)
            .map(|block| block.split("```").next());
        files.extend(
            blocks
                .flatten()
                .map(|block| (page.clone(), block.to_owned())),
        );
    }
    let mut count = 0;
    for (name, text) in files.iter().filter(|(_, text)| read(text).is_ok()) {
        if let Err(error) = validator.validate(&json(name, text)) {
            panic!(
                "{}: {error} at {}\n{text}",
                name.display(),
                error.instance_path()
            );
        }
        count += 1;
    }
    assert!(count >= 25, "only {count} files");
}

/// Files of the golden set that are wrong by their form, so that an editor can say so.
const REFUSED: &[&str] = &[
    "file-keys-unknown",
    "file-keys-dash-for-underscore",
    "file-listeners-list",
    "file-listeners-missing",
    "file-listeners-null",
    "file-not-a-map",
    "file-version-two",
    "file-workers-word",
    "file-words-nginx",
    "file-words-haproxy",
    "listeners-bind-missing",
    "listeners-protocol-udp",
    "listeners-timeouts-off",
    "listeners-tls-client_auth-word",
    "listeners-tls-no-key",
    "listeners-tls-two-ways",
    "log-level-word",
    "pools-backends-empty",
    "pools-backends-missing",
    "pools-backends-scalar",
    "pools-backends-weight-out-of-range",
    "pools-backends-without-address",
    "pools-policy-typo",
    "pools-health_check-on_down-word",
    "pools-retries-condition",
    "pools-timeouts-connect-none",
    "pools-name-with-space",
    "routes-action-missing",
    "routes-action-two",
    "routes-path-two",
    "routes-redirect-bad-status",
    "values-boolean-off",
    "values-boolean-quoted",
    "values-duration-without-unit",
    "values-number-negative",
    "values-number-quoted",
    "values-share-without-percent",
    "values-size-lower-case",
];

#[test]
fn files_with_a_wrong_form_are_refused() {
    let validator = validator();
    for name in REFUSED {
        let path = root()
            .join("tests/golden/config")
            .join(format!("{name}.yaml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read(&text).is_err(), "{name} is a good file");
        assert!(
            !validator.is_valid(&json(&path, &text)),
            "{name} is valid by the schema"
        );
    }
    assert!(REFUSED.len() >= 20);
}

/// A wrong value of every key that has a type of its own.
#[test]
fn a_wrong_value_of_a_key_is_refused() {
    let validator = validator();
    let path = Path::new("one key");
    for row in schema::rows() {
        let [_, wrong] = crate::one_key::without_and_with(row.path, "[[[]]]");
        assert!(!validator.is_valid(&json(path, &wrong)), "{}", row.path);
        let [_, right] = crate::one_key::without_and_with(row.path, "1");
        if read(&right).is_ok() {
            assert!(validator.is_valid(&json(path, &right)), "{}", row.path);
        }
    }
}
