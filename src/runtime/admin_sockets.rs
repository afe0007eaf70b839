//! The sockets of the admin API and of the metrics page, which are bound once, at the start.

use std::{
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use tokio::net::TcpListener;

use crate::{
    admin::AdminListener, base::address::BindAddress, config::model::AdminConfig,
    net::listen::BindError,
};

/// Mode bit: the group may write.
const GROUP_WRITES: u32 = 0o020;
/// Mode bit: everybody may write.
const OTHERS_WRITE: u32 = 0o002;
/// Mode bit: only its owner may remove or rename an entry of the directory.
const STICKY_BIT: u32 = 0o1000;

/// Binds the admin API; makes the directory of the default socket if it is missing.
pub(super) fn bind_admin(config: &AdminConfig, default: &Path) -> io::Result<AdminListener> {
    if config.bind.is_none()
        && let Some(directory) = default.parent()
    {
        make_private(directory).map_err(|error| {
            let text = format!("cannot make {}: {error}", directory.display());
            io::Error::new(error.kind(), text)
        })?;
    }
    AdminListener::bind(config, default)
}

/// Makes `directory` for us alone, or checks that it is ours: in a world-writable parent such as
/// `/tmp` another user could have made it, to put a socket of theirs in the place of ours.
fn make_private(directory: &Path) -> io::Result<()> {
    let refused = |why: &str| {
        let kind = io::ErrorKind::PermissionDenied;
        Err(io::Error::new(kind, why))
    };
    let parent = directory.parent().and_then(|parent| parent.metadata().ok());
    let parent = parent.map_or(0, |parent| parent.mode());
    let is_shared = parent & OTHERS_WRITE != 0;
    if is_shared && parent & STICKY_BIT == 0 {
        return refused("everybody may replace it: its parent needs the sticky bit");
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(directory)?;
            if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
                return refused("it belongs to another user");
            }
            let by_others = if is_shared {
                GROUP_WRITES | OTHERS_WRITE
            } else {
                OTHERS_WRITE
            };
            if found.mode() & by_others != 0 {
                return refused("others may write to it: `chmod 700` it");
            }
            Ok(())
        }
        made => made,
    }
}

/// Binds the metrics page; `None` where the configuration has none.
pub(super) async fn bind_metrics(
    bind: Option<SocketAddr>,
) -> Result<Option<TcpListener>, BindError> {
    let Some(address) = bind else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| BindError {
        address: BindAddress::Ip(address),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_runtime_directory_that_others_may_write_or_replace_is_refused() {
        let top = std::env::temp_dir().join(format!("balancer-private-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        let directory = top.join("run");
        let check = |parent: u32, own: u32| {
            let mode = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            };
            mode(&top, parent);
            mode(&directory, own);
            make_private(&directory).map_err(|error| error.to_string())
        };
        make_private(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        for own in [0o700, 0o755] {
            assert_eq!(check(0o1777, own), Ok(()), "{own:o}");
        }
        for own in [0o770, 0o702, 0o777] {
            let refused = check(0o1777, own).unwrap_err();
            assert!(refused.contains("others may write"), "{own:o}: {refused}");
        }
        assert!(check(0o777, 0o700).unwrap_err().contains("sticky"));
        assert_eq!(check(0o755, 0o770), Ok(()), "a group that was chosen");
        assert!(check(0o755, 0o777).is_err());
        fs::remove_dir_all(&top).unwrap();
    }
}
