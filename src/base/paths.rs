//! Default paths: one rule for the daemon and for the commands that talk to it.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// The configuration file of an installed balancer.
pub const SYSTEM_CONFIG: &str = "/etc/balancer/balancer.yaml";

/// Returns the default configuration file: [`SYSTEM_CONFIG`] if it exists, else `balancer.yaml` in
/// the current directory, even if that does not exist.
pub fn default_config() -> PathBuf {
    let system = Path::new(SYSTEM_CONFIG);
    if system.exists() {
        system.to_owned()
    } else {
        PathBuf::from("balancer.yaml")
    }
}

/// Returns the default socket of the admin API: `admin.sock` in the first of `$RUNTIME_DIRECTORY`
/// (set by systemd), `/run/balancer` for root, `$XDG_RUNTIME_DIR/balancer`, `/tmp/balancer-UID`.
///
/// The daemon makes the directory with mode 0700. In `/tmp` another user may have made it before,
/// so the caller must check that it owns the directory.
pub fn default_admin_socket() -> PathBuf {
    admin_socket(
        env::var_os("RUNTIME_DIRECTORY"),
        env::var_os("XDG_RUNTIME_DIR"),
        rustix::process::geteuid().as_raw(),
    )
}

fn admin_socket(runtime: Option<OsString>, xdg: Option<OsString>, uid: u32) -> PathBuf {
    let directory = runtime
        .and_then(|list| first_absolute(&list))
        .or_else(|| (uid == 0).then(|| PathBuf::from("/run/balancer")))
        .or_else(|| {
            xdg.and_then(|list| first_absolute(&list))
                .map(|path| path.join("balancer"))
        })
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/balancer-{uid}")));
    directory.join("admin.sock")
}

/// Returns the directory of state that outlives the process: the first of `$STATE_DIRECTORY` (set
/// by systemd), `/var/lib/balancer` for root, `$XDG_STATE_HOME/balancer`,
/// `~/.local/state/balancer`. `None` without a home directory.
///
/// Two daemons must not share it. It need not exist: [`StateFile`](super::state_file::StateFile)
/// makes it.
pub fn state_directory() -> Option<PathBuf> {
    state_directory_of(
        env::var_os("STATE_DIRECTORY"),
        env::var_os("XDG_STATE_HOME"),
        env::var_os("HOME"),
        rustix::process::geteuid().as_raw(),
    )
}

fn state_directory_of(
    state: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
    uid: u32,
) -> Option<PathBuf> {
    state
        .and_then(|list| first_absolute(&list))
        .or_else(|| (uid == 0).then(|| PathBuf::from("/var/lib/balancer")))
        .or_else(|| Some(first_absolute(&xdg?)?.join("balancer")))
        .or_else(|| Some(first_absolute(&home?)?.join(".local/state/balancer")))
}

/// Returns the first path of a list separated by colons, as systemd sets for several directories.
fn first_absolute(list: &OsStr) -> Option<PathBuf> {
    env::split_paths(list)
        .next()
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(runtime: Option<&str>, xdg: Option<&str>, uid: u32) -> String {
        admin_socket(runtime.map(OsString::from), xdg.map(OsString::from), uid)
            .display()
            .to_string()
    }

    #[test]
    fn the_runtime_directory_of_systemd_comes_first() {
        let xdg = Some("/run/user/1");
        assert_eq!(
            socket(Some("/run/lb"), xdg, 0),
            "/run/lb/admin.sock",
            "systemd's is named for this service"
        );
        assert_eq!(socket(Some("/run/a:/run/b"), xdg, 7), "/run/a/admin.sock");
        assert_eq!(socket(None, xdg, 0), "/run/balancer/admin.sock");
        assert_eq!(socket(None, xdg, 7), "/run/user/1/balancer/admin.sock");
        assert_eq!(socket(None, None, 7), "/tmp/balancer-7/admin.sock");
        assert_eq!(
            socket(Some(""), Some("relative"), 7),
            "/tmp/balancer-7/admin.sock"
        );
    }

    #[test]
    fn the_state_directory_of_systemd_comes_first_and_a_home_last() {
        let state = |state: Option<&str>, xdg: Option<&str>, home: Option<&str>, uid| {
            let [state, xdg, home] = [state, xdg, home].map(|path| path.map(OsString::from));
            let path = state_directory_of(state, xdg, home, uid);
            path.map(|path| path.display().to_string())
        };
        let (xdg, home) = (Some("/x"), Some("/home/me"));
        for (given, expected) in [
            ((Some("/var/lib/lb:/b"), xdg, home, 0), "/var/lib/lb"),
            ((None, xdg, home, 0), "/var/lib/balancer"),
            ((None, xdg, home, 7), "/x/balancer"),
            (
                (Some("relative"), None, home, 7),
                "/home/me/.local/state/balancer",
            ),
        ] {
            let (systemd, xdg, home, uid) = given;
            let found = state(systemd, xdg, home, uid);
            assert_eq!(found.as_deref(), Some(expected), "{given:?}");
        }
        assert_eq!(state(None, None, Some("relative"), 7), None);
    }
}
