//! The files of this machine that a configuration may consist of: regular ones, of bounded size.
//!
//! A FIFO, device or socket could hold up the reader for ever; a file system that does not answer
//! still can, so the daemon reads on a thread of its own and asks [`RealFiles::last`] where it
//! stands.

use std::{
    fs::{self, FileType, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::pki_types::CertificateDer;

use super::reader::FileAccess;

/// The files of this machine. Clones share what they report.
#[derive(Debug, Clone, Default)]
pub struct RealFiles {
    last: Arc<Mutex<PathBuf>>,
}

impl RealFiles {
    /// The file or directory that was touched last: where a reader that does not end hangs.
    pub fn last(&self) -> PathBuf {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    fn touch(&self, path: &Path) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        path.clone_into(&mut last);
    }
}

impl FileAccess for RealFiles {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.touch(path);
        read_regular(path, limit)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.touch(path);
        fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.touch(path);
        path.is_dir()
    }

    fn system_roots(&self) -> Vec<CertificateDer<'static>> {
        self.touch(Path::new("the root certificates of this machine"));
        // What cannot be read is left out: a backend that needed it is refused, and says so.
        rustls_native_certs::load_native_certs().certs
    }
}

/// The bytes of a regular file, or of one that a symbolic link leads to: at most `limit` and one
/// more.
///
/// # Errors
/// Also for everything that is no regular file; its text says what it is.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Opening a FIFO or a device may have effects, so it is looked at first; it may be replaced in
    // between.
    must_be_regular(fs::metadata(path)?.file_type())?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open(path) {
        // Another process has a lease on it, and is being asked to give it up.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => fs::File::open(path)?,
        opened => opened?,
    };
    must_be_regular(file.metadata()?.file_type())?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn must_be_regular(found: FileType) -> io::Result<()> {
    let what = match found {
        _ if found.is_file() => return Ok(()),
        _ if found.is_dir() => "it is a directory",
        _ if found.is_fifo() => "it is a FIFO",
        _ if found.is_socket() => "it is a socket",
        _ => "it is a device",
    };
    let text = format!("{what}, and only regular files are read");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn only_regular_files_are_read_also_through_links_and_the_rest_is_named() {
        let folder = std::env::temp_dir().join(format!("balancer-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        symlink("fifo", at("link-to-fifo")).unwrap();
        let socket = UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_regular(&at("file"), 100).unwrap(), b"text");
        assert_eq!(read_regular(&at("link"), 2).unwrap(), b"tex");
        for (path, what) in [
            (at("fifo"), "it is a FIFO"),
            (at("link-to-fifo"), "it is a FIFO"),
            (at("socket"), "it is a socket"),
            (folder.clone(), "it is a directory"),
            (PathBuf::from("/dev/zero"), "it is a device"),
        ] {
            let error = read_regular(&path, 100).unwrap_err().to_string();
            assert!(error.starts_with(what), "{}: {error}", path.display());
        }
        let files = RealFiles::default();
        assert!(files.clone().read(&at("none"), 1).is_err());
        assert_eq!(files.last(), at("none"));
        drop(socket);
        fs::remove_dir_all(&folder).unwrap();
    }
}
