//! A redis check: PING must get PONG, after a login where the check has a password; then the role,
//! where one is required. Commands are arrays and replies lines of RESP2, which every version has.

use super::{
    conversation::{ProbeConversation, shown},
    error::CheckError,
};
use crate::config::model::{RedisCheckConfig, RedisRole};

/// Most bytes of the name of a role.
const MAX_ROLE_BYTES: usize = 32;

/// Asks on a connection of its own.
pub(super) async fn probe(
    mut server: ProbeConversation<'_>,
    check: &RedisCheckConfig,
) -> Result<(), CheckError> {
    if let Some(password) = &check.password {
        let user = check.user.as_ref().map(String::as_bytes);
        let words = [Some(b"AUTH".as_slice()), user, Some(password.reveal())];
        let words: Vec<&[u8]> = words.into_iter().flatten().collect();
        server.send(&command(&words)).await;
        let reply = server.line().await?;
        if reply != b"+OK" {
            // Only the code: the rest of the line could repeat what was sent.
            let code = shown(error_code(&reply));
            return Err(CheckError::unexpected(format!("login failed: {code}")));
        }
    }
    server.send(&command(&[b"PING"])).await;
    let reply = server.line().await?;
    if reply != b"+PONG" {
        return Err(CheckError::unexpected(ping_cause(&reply)));
    }
    match check.role {
        Some(wanted) => judge_role(&mut server, wanted).await,
        None => Ok(()),
    }
}

/// A command as an array of strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The first word of an error, such as `NOAUTH`.
fn error_code(reply: &[u8]) -> &[u8] {
    let text = reply.strip_prefix(b"-").unwrap_or(b"unexpected reply");
    text.split(|byte| *byte == b' ').next().unwrap_or(text)
}

/// The cause for a reply to PING that is not PONG.
fn ping_cause(reply: &[u8]) -> String {
    match (reply.first(), error_code(reply)) {
        (Some(b'-'), b"LOADING") => "the server is loading its data (LOADING)".to_owned(),
        (Some(b'-'), b"NOAUTH") => {
            "the server wants a password (NOAUTH): set `password_file`".to_owned()
        }
        (Some(b'-'), _) => format!(
            "the server says {}",
            shown(reply.get(1..).unwrap_or_default())
        ),
        _ => format!("expected `+PONG`, found `{}`", shown(reply)),
    }
}

/// Asks for the role, of which only the name is read.
async fn judge_role(
    server: &mut ProbeConversation<'_>,
    wanted: RedisRole,
) -> Result<(), CheckError> {
    server.send(&command(&[b"ROLE"])).await;
    let reply = server.line().await?;
    if !reply.starts_with(b"*") {
        let cause = match reply.strip_prefix(b"-") {
            Some(error) => format!("the server does not tell its role: {}", shown(error)),
            None => format!("the server's role is not a list: `{}`", shown(&reply)),
        };
        return Err(CheckError::unexpected(cause));
    }
    let length = server.line().await?;
    let length = std::str::from_utf8(&length)
        .ok()
        .and_then(|text| text.strip_prefix('$')?.parse::<usize>().ok())
        .filter(|length| *length <= MAX_ROLE_BYTES)
        .ok_or_else(|| CheckError::unexpected("the server's role is malformed"))?;
    let role = server.exactly(length).await?;
    let expected: &[u8] = match wanted {
        RedisRole::Master => b"master",
        RedisRole::Replica => b"slave",
    };
    if role == expected {
        return Ok(());
    }
    // Redis calls replicas slaves in this reply only.
    let found = match role.as_slice() {
        b"slave" => "replica".to_owned(),
        other => shown(other),
    };
    let wanted = wanted.name();
    Err(CheckError::unexpected(format!(
        "the server is a {found}, expected a {wanted}"
    )))
}
