//! Members from a file that is watched.
//!
//! The file that the path leads to is looked at twice a second: that also sees a file that was
//! renamed over it, and a symbolic link that leads elsewhere, on every file system. A file that is
//! missing or broken keeps the members that it had.

use std::{
    cell::RefCell,
    hash::{DefaultHasher, Hash, Hasher as _},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    listed::{ListedState, MemberListing},
    resolver::{FileStamp, stamp},
};
use crate::{
    base::clock,
    config::{
        files::read_regular,
        model::{BackendConfig, PoolConfig},
        parse_members,
        yaml::MAX_BYTES,
    },
};

/// Time from one look at the file to the next.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Time for which a file must not have changed before it is read: one that is written in place must
/// not be taken for whole halfway.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// Time after a change for which the next one may have the same stamp.
const STAMP_RESOLUTION: Duration = Duration::from_secs(1);

/// The result of a look at the file.
enum FileLook {
    /// As at the last look.
    Same,
    /// It changed a moment ago: another look is due soon.
    Changing,
    /// The stamp and content when it was read.
    Read(FileStamp, u64, Result<Vec<BackendConfig>, String>),
}

/// Watches the file at `path` until the task ends.
pub(super) async fn watch(
    path: PathBuf,
    pool: Rc<RefCell<Arc<PoolConfig>>>,
    state: Rc<ListedState>,
) {
    let mut known: Option<(FileStamp, u64)> = None;
    loop {
        let (file, config) = (path.clone(), Arc::clone(&pool.borrow()));
        // On a thread of its own: a file system that does not answer must block nothing else.
        let look = spawn_blocking(move || look_at(&file, known, &config)).await;
        let pause = match look {
            Ok(FileLook::Same) => POLL_INTERVAL,
            Ok(FileLook::Changing) => SETTLE_TIME,
            Ok(FileLook::Read(stamp, hash, read)) => {
                known = Some((stamp, hash));
                match read {
                    Ok(members) => state.succeed(MemberListing::Whole(members)),
                    Err(cause) => state.fail(&cause),
                }
                POLL_INTERVAL
            }
            Err(panic) => {
                state.fail(&panic.to_string());
                POLL_INTERVAL
            }
        };
        sleep(pause).await;
    }
}

fn look_at(path: &Path, known: Option<(FileStamp, u64)>, pool: &PoolConfig) -> FileLook {
    let now = stamp(path);
    if let Some((before, _)) = known
        && before == now
        && !is_recent(now, STAMP_RESOLUTION)
    {
        return FileLook::Same;
    }
    let is_replaced = known.is_some_and(|(before, _)| file_of(before) != file_of(now));
    // A file that was renamed here is whole.
    if !is_replaced && is_recent(now, SETTLE_TIME) {
        return FileLook::Changing;
    }
    let read = read_regular(path, MAX_BYTES as u64);
    if stamp(path) != now {
        return FileLook::Changing;
    }
    let hash = hash_of(&read.as_ref().map_err(io::Error::kind));
    if let Some((_, before)) = known
        && before == hash
    {
        // Read again only because the stamp could not tell.
        if is_recent(now, STAMP_RESOLUTION) {
            return FileLook::Same;
        }
    }
    FileLook::Read(now, hash, parse(path, read, pool))
}

fn parse(
    path: &Path,
    read: io::Result<Vec<u8>>,
    pool: &PoolConfig,
) -> Result<Vec<BackendConfig>, String> {
    let bytes = read.map_err(|error| error.to_string())?;
    parse_members(path, &bytes, pool).map_err(|error| error.to_string())
}

/// Device and inode.
fn file_of(stamp: FileStamp) -> Option<(u64, u64)> {
    stamp.map(|(device, inode, ..)| (device, inode))
}

/// True if the file changed within `time`.
fn is_recent(stamp: FileStamp, time: Duration) -> bool {
    let Some((_, _, _, changed)) = stamp else {
        return false;
    };
    let now = clock::unix_now().as_nanos().cast_signed();
    // A time in the future is that of another clock, and tells nothing.
    (0..time.as_nanos().cast_signed()).contains(&(now - changed))
}

fn hash_of(content: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
