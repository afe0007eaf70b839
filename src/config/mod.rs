//! The configuration: file → tree → checked model. Pure but for reading files.
//!
//! [`load`] is what the daemon and `balancer check` call. Read next: `yaml` (the tree), `reader`
//! (typed access with problems), `file` (one module per section), `check` (across sections), `diff`
//! (what a reload changes).

mod bind_list;
mod bind_places;
mod check;
mod defaults;
pub mod diff;
mod file;
pub mod files;
mod hint;
mod key_value;
pub mod model;
pub mod problem;
mod reader;
mod route_order;
mod scalar;
pub mod schema;
mod trusted;
pub mod yaml;

use std::{io, path::Path};

pub use bind_places::BindPlaces;
pub use files::RealFiles;
pub use hint::nearest;
pub use problem::{Problem, Problems, Severity};
pub use reader::FileAccess;
use rustls::pki_types::CertificateDer;

/// A configuration that is fit to run.
#[derive(Debug)]
pub struct LoadedConfig {
    /// All defaults filled in, all references resolved.
    pub config: model::Config,
    /// Warnings, in the order of the file.
    pub warnings: Vec<Problem>,
    /// Places of the addresses to listen on.
    pub binds: BindPlaces,
}

/// No files at all: every access fails. For tests and fuzzing.
#[derive(Debug, Clone, Copy)]
pub struct NoFiles;

impl FileAccess for NoFiles {
    fn read(&self, _: &Path, _: u64) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn is_dir(&self, _: &Path) -> bool {
        false
    }

    fn system_roots(&self) -> Vec<CertificateDer<'static>> {
        Vec::new()
    }
}

/// The cause of a failed read, in words and without the path.
fn io_cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        _ if error.get_ref().is_some() => error.to_string(),
        kind => kind.to_string(),
    }
}

/// Reads and checks the file at `path`. Paths inside it are relative to its directory.
pub fn load(path: &Path) -> Result<LoadedConfig, Problems> {
    load_through(path, &RealFiles::default())
}

/// Like [`load`], through the caller's `files`.
pub fn load_through(path: &Path, files: &dyn FileAccess) -> Result<LoadedConfig, Problems> {
    let bytes = files.read(path, yaml::MAX_BYTES as u64).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "name the file with `-c FILE`, or create it",
            io::ErrorKind::PermissionDenied => "make it readable by balancer's user",
            io::ErrorKind::InvalidInput => {
                "name a regular file, or pipe it into `balancer check -`"
            }
            _ => "name a readable file with `-c FILE`",
        };
        let message = format!("cannot read the file: {}", io_cause(&error));
        Problems::of_file(path, message, hint)
    })?;
    check(path, bytes, files)
}

/// Checks the configuration `bytes`, called `name` in messages, whose directory is where its paths
/// begin.
pub fn check(
    name: &Path,
    bytes: Vec<u8>,
    files: &dyn FileAccess,
) -> Result<LoadedConfig, Problems> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error
            .as_bytes()
            .get(..error.utf8_error().valid_up_to())
            .map_or(1, |valid| valid.split(|b| *b == b'\n').count());
        let message = format!("the file is not UTF-8 text: see line {line}");
        Problems::of_file(name, message, "save it as UTF-8")
    })?;
    parse(name, &text, files)
}

/// Checks the document `text`, called `name` in messages. Reads other files through `files` only.
pub fn parse(name: &Path, text: &str, files: &dyn FileAccess) -> Result<LoadedConfig, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = reader::TreeReader::new(name, text, files);
    let root = match yaml::read(text) {
        Ok(root) => root,
        Err(error) => {
            reader.report(
                Severity::Error,
                error.place,
                String::new(),
                error.message,
                error.hint.to_owned(),
            );
            return Err(Problems(reader.problems));
        }
    };
    let (config, binds) = file::read(&mut reader, &root);
    let binds = BindPlaces::new(&reader, name, &binds);
    let mut problems = Problems(reader.problems);
    problems.0.sort_by_key(|problem| problem.place.start);
    if problems.errors() > 0 {
        return Err(problems);
    }
    Ok(LoadedConfig {
        config,
        warnings: problems.0,
        binds,
    })
}

/// Cause of a list of members, or of one member, that cannot be used: its first problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message} ({hint})")]
pub struct MembersError {
    line: usize,
    message: String,
    hint: String,
}

/// Checks `bytes`, a YAML or JSON document with a list like `backends`, for `pool`. `name` is the
/// file that they are from.
pub fn parse_members(
    name: &Path,
    bytes: &[u8],
    pool: &model::PoolConfig,
) -> Result<Vec<model::BackendConfig>, MembersError> {
    parse_document(name, bytes, |reader, root| {
        file::read_members(reader, root, pool)
    })
}

/// Checks `bytes`, a JSON or YAML document that is one entry of `backends`, for `pool`.
pub fn parse_member(
    bytes: &[u8],
    pool: &model::PoolConfig,
) -> Result<model::BackendConfig, MembersError> {
    let found = parse_document(Path::new(""), bytes, |reader, root| {
        file::read_member(reader, root, pool)
    })?;
    found.ok_or_else(|| members_error(1, "not a backend", "write `{\"address\": \"HOST:PORT\"}`"))
}

fn members_error(line: usize, message: &str, hint: &str) -> MembersError {
    MembersError {
        line,
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

/// Reads one document with `read`, and returns the first error in it, if there is one.
fn parse_document<T>(
    name: &Path,
    bytes: &[u8],
    read: impl FnOnce(&mut reader::TreeReader<'_>, &yaml::YamlNode) -> T,
) -> Result<T, MembersError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| members_error(1, "the file is not UTF-8 text", "save it as UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::read(text)
        .map_err(|error| members_error(error.place.line, &error.message, error.hint))?;
    let mut reader = reader::TreeReader::new(name, text, &NoFiles);
    let found = read(&mut reader, &root);
    let mut errors = reader.problems.iter();
    match errors.find(|problem| problem.severity == Severity::Error) {
        Some(problem) => Err(members_error(
            problem.place.line,
            &problem.message,
            &problem.hint,
        )),
        None => Ok(found),
    }
}
