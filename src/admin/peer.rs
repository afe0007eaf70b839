//! The operator behind a request, for the log and for the overrides that it sets.
//!
//! On a unix socket the kernel says which user has connected (unix(7), `SO_PEERCRED`). On TCP only
//! the token is known, which several people may share.

use std::{fs, io::Read as _};

use tokio::net::UnixStream;

/// Bytes of the file of users that are read at most.
const MAX_USERS_BYTES: u64 = 1 << 20;

/// The operator who has opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestPeer {
    /// One who knows the token.
    Token,
    /// The user of a process on this machine; `None` if the kernel does not tell.
    User(Option<u32>),
}

impl RequestPeer {
    /// The user at the other end of `stream`.
    pub(super) fn of(stream: &UnixStream) -> Self {
        Self::User(stream.peer_cred().ok().map(|peer| peer.uid()))
    }

    /// A name for people: that of the user, `uid 1234` where it has none in /etc/passwd, or
    /// `token`.
    pub(super) fn name(self) -> String {
        match self {
            Self::Token => "token".to_owned(),
            Self::User(None) => "an unknown user".to_owned(),
            Self::User(Some(uid)) => user_name(&users(), uid),
        }
    }
}

/// The file of users; empty if it cannot be read.
fn users() -> String {
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open("/etc/passwd") {
        // What was read before an error still has users.
        let _ = file.take(MAX_USERS_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The name of a user in the format of passwd(5).
fn user_name(users: &str, uid: u32) -> String {
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let is_user = fields.nth(1)?.parse() == Ok(uid);
        let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        (is_user && is_plain && name.len() <= 64).then_some(name)
    });
    found.map_or_else(|| format!("uid {uid}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_passwd_or_a_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7::\nb ad:x:8::\nlea:x:1000:1:::\n";
        let names = [0, 1000, 7, 8, 9].map(|uid| user_name(users, uid));
        assert_eq!(names, ["root", "lea", "uid 7", "uid 8", "uid 9"]);
    }
}
