//! The configuration: file → tree → checked model. Pure but for reading files.
//!
//! [`load`] is what the daemon and `balancer check` call. Read next: `yaml` (the tree), `reader` (typed access with
//! problems), `file` (one module per section), `check` (across sections), `diff` (what a reload changes).

mod check;
mod defaults;
pub mod diff;
mod file;
mod hint;
pub mod keys;
pub mod model;
pub mod problem;
mod reader;
mod route_order;
mod scalar;
mod tls;
pub mod yaml;

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

pub use problem::{Problem, Problems, Severity};
pub use reader::Files;
use rustls::pki_types::CertificateDer;

/// A configuration that is fit to run.
#[derive(Debug)]
pub struct Loaded {
    /// All defaults filled in, all references resolved.
    pub config: model::Config,
    /// What its author hardly wants, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// The files of this machine.
#[derive(Debug, Clone, Copy)]
pub struct RealFiles;

impl Files for RealFiles {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(limit + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn system_roots(&self) -> Vec<CertificateDer<'static>> {
        // What cannot be read is left out: a backend that needed it is refused, and says so.
        rustls_native_certs::load_native_certs().certs
    }
}

/// No files at all: every look at one fails. For tests and fuzzing.
#[derive(Debug, Clone, Copy)]
pub struct NoFiles;

impl Files for NoFiles {
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

/// Why a file could not be read, in words and without its path.
fn io_cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        kind => kind.to_string(),
    }
}

/// Reads and checks the file at `path`. Paths inside it are relative to its directory.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let problem = |message: String, hint: &str| Problems::of_file(path, message, hint);
    let bytes = RealFiles
        .read(path, yaml::MAX_BYTES as u64)
        .map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "name the file with `-c FILE`, or make it",
                io::ErrorKind::PermissionDenied => "make it readable for balancer's user",
                _ => "name a readable file with `-c FILE`",
            };
            problem(format!("cannot read the file: {}", io_cause(&error)), hint)
        })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error
            .as_bytes()
            .get(..error.utf8_error().valid_up_to())
            .map_or(1, |valid| valid.split(|b| *b == b'\n').count());
        problem(
            format!("the file is not UTF-8 text: see line {line}"),
            "save it as UTF-8",
        )
    })?;
    parse(path, &text, &RealFiles)
}

/// Checks the document `text`, called `name` in messages. Looks at the world through `files` only.
pub fn parse(name: &Path, text: &str, files: &dyn Files) -> Result<Loaded, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = reader::Reader::new(name, text, files);
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
    let config = file::read(&mut reader, &root);
    let mut problems = Problems(reader.problems);
    problems.0.sort_by_key(|problem| problem.place.start);
    if problems.errors() > 0 {
        return Err(problems);
    }
    Ok(Loaded {
        config,
        warnings: problems.0,
    })
}
