//! Scratch paths for the tests of all layers.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process,
};

/// A path below the temporary directory at which there is nothing. A file or directory that a test
/// makes there is removed with it.
pub(crate) struct ScratchPath(PathBuf);

impl ScratchPath {
    /// A path for the test `name`, of this process alone.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("balancer-{name}-{}", process::id()));
        remove(&path);
        Self(path)
    }

    /// The same with a directory at it.
    pub(crate) fn directory(name: &str) -> Self {
        let this = Self::new(name);
        fs::create_dir(&this.0).unwrap();
        this
    }
}

impl Deref for ScratchPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchPath {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes what is at `path`; nothing is fine.
fn remove(path: &Path) {
    drop(fs::remove_dir_all(path));
    drop(fs::remove_file(path));
}
