//! The daemon's own secret for sticky sessions, for pools without `secret_file`: a random key in
//! the state directory, so that sessions outlive a restart.
//!
//! It is made when it is first needed, and never replaced: a file that cannot be used is a warning.
//! Runs on the thread that reads the configuration.

use std::{
    fmt::Write as _,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::{
    base::state_file::StateFile,
    config::{
        LoadedConfig, Problems, Severity,
        model::{PoolConfig, StickySecret},
    },
};

/// Name of the file in the state directory.
const KEY_FILE: &str = "sticky.key";
/// Random bytes of a new key.
const KEY_BYTES: usize = 32;
/// Largest file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 4 << 10;

/// The daemon's own secret, kept while the process lives. Clones share it.
#[derive(Clone, Default)]
pub(super) struct StickyKeys {
    /// `None` if the key is not kept, or there is no directory for it.
    file: Option<StateFile>,
    is_temporary: bool,
    /// The secret in use: that of the file, or one that could not be saved.
    current: Arc<Mutex<Option<StickySecret>>>,
}

impl StickyKeys {
    /// A key in `directory`, which is made when it is first needed; `None`: there is no place for
    /// one.
    pub(super) fn new(directory: Option<&Path>) -> Self {
        Self {
            file: directory.map(|directory| StateFile::new(directory, KEY_FILE)),
            ..Self::default()
        }
    }

    /// A key that ends with the process on purpose.
    pub(super) fn temporary() -> Self {
        Self {
            is_temporary: true,
            ..Self::default()
        }
    }

    /// Gives the secret to the pools of `loaded` that have none of their own. A file that cannot be
    /// read or made is a warning: sessions then end with the process.
    pub(super) fn complete(&self, loaded: &mut LoadedConfig, name: &Path) {
        let lacks_secret = |pool: &&mut PoolConfig| {
            let sticky = pool.sticky.as_ref();
            sticky.is_some_and(|sticky| sticky.secret.is_none())
        };
        let mut pools = loaded
            .config
            .pools
            .iter_mut()
            .filter(lacks_secret)
            .peekable();
        if pools.peek().is_none() {
            return;
        }
        let (secret, unsaved) = self.secret();
        for pool in pools {
            if let Some(sticky) = &mut pool.sticky {
                sticky.secret.clone_from(&secret);
            }
        }
        if let Some(error) = unsaved {
            let path = self.file.as_ref().map(StateFile::path);
            let message = format!(
                "the key of sticky sessions{} cannot be used: {error}; sessions end with this process",
                path.map_or(String::new(), |path| format!(" in {}", path.display()))
            );
            let hint = "make the directory writable, or write `secret_file` in `sticky`";
            let mut problems = Problems::of_file(name, message, hint);
            for problem in &mut problems.0 {
                problem.severity = Severity::Warning;
            }
            loaded.warnings.append(&mut problems.0);
        }
    }

    /// The secret, and the error that kept it from being saved.
    fn secret(&self) -> (Option<StickySecret>, Option<io::Error>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match self.load_or_save(current.clone()) {
            Ok(secret) => {
                *current = Some(secret.clone());
                (Some(secret), None)
            }
            Err(error) => {
                if current.is_none() {
                    *current = new_key().ok();
                }
                (current.clone(), Some(error))
            }
        }
    }

    /// Reads the file. If there is none, makes it with the secret in use or a new one.
    fn load_or_save(&self, current: Option<StickySecret>) -> io::Result<StickySecret> {
        let new = || current.map_or_else(new_key, Ok);
        let Some(file) = &self.file else {
            if self.is_temporary {
                return new();
            }
            return Err(io::Error::other("there is no home directory"));
        };
        if let Some(content) = file.read(MAX_KEY_BYTES)? {
            let secret = StickySecret::of_file(&content);
            return secret.ok_or_else(|| io::Error::other("it holds no key"));
        }
        let secret = new()?;
        file.write(secret.bytes())?;
        Ok(secret)
    }
}

/// Makes a random key, as text: it can be copied to other machines.
fn new_key() -> io::Result<StickySecret> {
    let secret = StickySecret::of_file(random_hex::<KEY_BYTES>()?.as_bytes());
    secret.ok_or_else(|| io::Error::other("the key is too short"))
}

/// `BYTES` random bytes in hexadecimal digits.
fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::{
        base::fixture::ScratchPath,
        config::{NoFiles, parse},
    };

    /// The secret that a sticky pool gets from `keys`, and the warnings.
    fn completed(keys: &StickyKeys) -> (Vec<u8>, Vec<String>) {
        let name = Path::new("balancer.yaml");
        let text = "
listeners: {web: {bind: ':8080', pool: app}}
pools: {app: {backends: [10.0.0.1:80], sticky: {cookie: lb}}}
";
        let mut loaded = parse(name, text, &NoFiles).unwrap();
        keys.complete(&mut loaded, name);
        let sticky = loaded.config.pools[0].sticky.as_ref().unwrap();
        let secret = sticky.secret.as_ref().unwrap().bytes().to_vec();
        let warnings = loaded.warnings.iter().map(ToString::to_string);
        (secret, warnings.collect())
    }

    #[test]
    fn a_key_is_made_once_for_this_user_alone_and_found_again() {
        let directory = ScratchPath::new("sticky-made");
        let (first, warnings) = completed(&StickyKeys::new(Some(&directory)));
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(first.len(), 2 * KEY_BYTES);
        let file = directory.join(KEY_FILE);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = StickyKeys::new(Some(&directory));
        assert_eq!(completed(&again), (first, Vec::new()));
        fs::write(&file, "another key of another machine\n").unwrap();
        assert_eq!(completed(&again).0, b"another key of another machine");
    }

    #[test]
    fn without_a_file_the_secret_lives_as_long_as_the_process_and_is_saved_when_it_can_be() {
        let directory = ScratchPath::new("sticky-unsaved");
        fs::write(&*directory, "in the way").unwrap();
        let keys = StickyKeys::new(Some(&directory));
        let (first, warnings) = completed(&keys);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("sessions end with this process"),
            "{warnings:?}"
        );
        assert_eq!(completed(&keys), (first.clone(), warnings));
        fs::remove_file(&*directory).unwrap();
        assert_eq!(completed(&keys), (first.clone(), Vec::new()));
        assert_eq!(fs::read(directory.join(KEY_FILE)).unwrap(), first);
    }

    #[test]
    fn a_file_that_holds_no_key_is_left_alone() {
        let directory = ScratchPath::directory("sticky-broken");
        let file = directory.join(KEY_FILE);
        fs::write(&file, "short").unwrap();
        let (_, warnings) = completed(&StickyKeys::new(Some(&directory)));
        assert!(warnings[0].contains("it holds no key"), "{warnings:?}");
        assert_eq!(fs::read(&file).unwrap(), b"short");
    }

    #[test]
    fn without_a_place_there_is_a_warning_unless_none_is_wanted() {
        let (_, warnings) = completed(&StickyKeys::new(None));
        assert!(warnings[0].contains("no home directory"), "{warnings:?}");
        let temporary = StickyKeys::temporary();
        let (first, warnings) = completed(&temporary);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(completed(&temporary).0, first, "the same after a reload");
    }
}
