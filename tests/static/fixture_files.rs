//! Files that configurations of the tests name: certificates and keys of tests/fixtures.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use balancer::config::{FileAccess, NoFiles};

/// Every certificate and key that a file names is there.
pub(crate) struct AnyFiles;

impl FileAccess for AnyFiles {
    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        let name = path.to_string_lossy();
        let fixture = if name.ends_with(".key") {
            "good.key"
        } else if name.contains("-ca.") {
            "ca.pem"
        } else {
            "good.pem"
        };
        let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        fs::read(fixtures.join(fixture))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        NoFiles.list(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        NoFiles.is_dir(path)
    }

    fn system_roots(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        NoFiles.system_roots()
    }
}

/// The certificates and keys of tests/fixtures, and nothing else.
pub(crate) struct FixtureFiles;

impl FileAccess for FixtureFiles {
    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
        fs::read(directory.join(name))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        NoFiles.list(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        NoFiles.is_dir(path)
    }

    fn system_roots(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        NoFiles.system_roots()
    }
}
