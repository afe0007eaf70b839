//! The bearer token of the API on TCP: its file, its header, and the comparison of both.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::timeout;

use crate::config::files::read_regular;

/// Time that a request waits for the token file.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a token file; the configuration refuses a larger one.
const MAX_TOKEN_BYTES: u64 = 4 << 10;

/// Bearer token in a file that may be replaced at any time.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    /// Token of the last successful read.
    last: Mutex<Arc<str>>,
    /// A thread is reading the file. Its file system may hang, and one hanging thread is enough.
    is_read: AtomicBool,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When the file cannot be read, is not a regular file, or is empty; names the file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            last: Mutex::new(read_token(path)?),
            is_read: AtomicBool::new(false),
        })
    }

    fn last(&self) -> Arc<str> {
        Arc::clone(&self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; returns the last token if that fails or takes too long.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<str> {
        if !self.is_read.swap(true, SeqCst) {
            let token = Arc::clone(self);
            // On a thread of its own: a read from a network file system can block for ever.
            let reader = tokio::task::spawn_blocking(move || {
                match read_token(&token.path) {
                    Ok(new) => *token.last.lock().unwrap_or_else(PoisonError::into_inner) = new,
                    Err(error) => {
                        tracing::warn!(target: "admin", %error, "cannot read the token file; the last token stays valid");
                    }
                }
                token.is_read.store(false, SeqCst);
            });
            drop(timeout(TOKEN_TIMEOUT, reader).await);
        }
        self.last()
    }
}

fn read_token(path: &Path) -> io::Result<Arc<str>> {
    let name = format!("admin token file `{}`", path.display());
    let bytes = read_regular(path, MAX_TOKEN_BYTES)
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    let text = String::from_utf8_lossy(&bytes);
    let token = text.trim();
    if token.is_empty() {
        let message = format!("{name} is empty");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(Arc::from(token))
}

/// Token in `Authorization: Bearer TOKEN`. The case of the scheme is ignored (RFC 9110 §11.1).
pub(super) fn bearer_token(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credentials.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// Compares two tokens in a time that does not depend on the position of the first difference.
///
/// Otherwise a client could guess the token byte by byte. `black_box` keeps the compiler from
/// leaving the loop early.
pub(super) fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    let difference = given
        .iter()
        .zip(expected)
        .fold(0, |difference, (a, b)| difference | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(difference) == 0
}
