//! A small file of the state directory: read whole, replaced whole.
//!
//! A replacement is written beside it, synchronised and renamed, so that a crash leaves the old
//! content or the new one. Both functions block: callers on an event loop use a helper thread. The
//! directory is that of [`state_directory`](super::paths::state_directory).

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
};

/// A file of the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    directory: PathBuf,
    name: &'static str,
}

impl StateFile {
    /// The file `name` in `directory`. Neither of them has to exist.
    pub fn new(directory: &Path, name: &'static str) -> Self {
        Self {
            directory: directory.to_owned(),
            name,
        }
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    /// Reads the content; `None` if there is no file.
    ///
    /// # Errors
    /// A file of more than `max_bytes` is an error, and is not read to its end.
    pub fn read(&self, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        // Without waiting for a writer, if it is a pipe.
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = match options.open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut content = Vec::new();
        file.take(max_bytes.saturating_add(1))
            .read_to_end(&mut content)?;
        if content.len() as u64 > max_bytes {
            return Err(io::Error::other(format!(
                "it has more than {max_bytes} bytes"
            )));
        }
        Ok(Some(content))
    }

    /// Replaces the content. The file has mode 0600, and a directory that is made 0700.
    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        let mut directory = fs::DirBuilder::new();
        directory
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let name = format!(".{}.{}.tmp", self.name, process::id());
        let temporary = self.directory.join(name);
        // One of an earlier process with this id, which a crash has left.
        drop(fs::remove_file(&temporary));
        let written = self.replace(&temporary, content);
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
        written
    }

    fn replace(&self, temporary: &Path, content: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        // Exclusive, so that a link in its place is not followed.
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(temporary, self.path())?;
        // Without this, a power failure may undo the rename.
        fs::File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::base::fixture::ScratchPath;

    #[test]
    fn a_file_is_replaced_whole_and_is_private() {
        let scratch = ScratchPath::new("state-write");
        let file = StateFile::new(&scratch.join("a/b"), "x.json");
        assert_eq!(file.read(10).unwrap(), None);
        for content in ["0123456789", "012"] {
            file.write(content.as_bytes()).unwrap();
            assert_eq!(file.read(10).unwrap(), Some(content.as_bytes().to_vec()));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file.path()), 0o600);
        assert_eq!(mode(&scratch.join("a")), 0o700);
        assert_eq!(fs::read_dir(scratch.join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_in_its_place_is_an_error_and_not_waited_for() {
        let scratch = ScratchPath::directory("pipe");
        let made = process::Command::new("mkfifo")
            .arg(scratch.join("one.json"))
            .status();
        assert!(made.unwrap().success());
        let error = StateFile::new(&scratch, "one.json").read(100).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn what_cannot_be_written_or_is_too_large_is_an_error_and_leaves_the_file() {
        let scratch = ScratchPath::new("state-error");
        let file = StateFile::new(&scratch, "x.json");
        file.write(b"0123").unwrap();
        assert!(file.read(3).unwrap_err().to_string().contains("3 bytes"));
        assert_eq!(file.read(4).unwrap().unwrap(), b"0123");
        let below = StateFile::new(&file.path(), "y.json");
        below.write(b"").unwrap_err();
        assert_eq!(file.read(4).unwrap().unwrap(), b"0123");
    }
}
