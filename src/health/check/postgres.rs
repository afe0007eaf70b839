//! A postgres check: the beginning of a session (protocol 3.0), and a login with a query where one
//! is needed.
//!
//! Without a login an answer is enough that only a working server gives: that it wants a password,
//! or that it does not know the user. A server that starts or stops says so (57P03).

use tokio::task::spawn_blocking;

use super::{
    conversation::{ProbeConversation, shown},
    error::CheckError,
    scram::{ScramError, ScramStart},
};
use crate::config::model::{PostgresCheckConfig, PostgresTarget, SecretText};

/// Version 3.0.
const PROTOCOL_VERSION: u32 = 3 << 16;
/// Request for TLS in place of a version.
const TLS_REQUEST: u32 = 80_877_103;
/// Longest message that is read.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;
/// Most messages of a check.
const MAX_MESSAGES: usize = 200;

/// Kinds of authentication requests.
const AUTH_OK: u32 = 0;
const AUTH_CLEARTEXT: u32 = 3;
const AUTH_MD5: u32 = 5;
const AUTH_SASL: u32 = 10;
const AUTH_SASL_CONTINUE: u32 = 11;
const AUTH_SASL_FINAL: u32 = 12;

const SCRAM_SHA_256: &[u8] = b"SCRAM-SHA-256";
const IN_RECOVERY: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// A message of the server.
struct ServerMessage {
    kind: u8,
    body: Vec<u8>,
}

/// Asks for TLS. The server must agree with one byte.
pub(super) async fn request_tls(server: &mut ProbeConversation<'_>) -> Result<(), CheckError> {
    let mut request = 8_u32.to_be_bytes().to_vec();
    request.extend_from_slice(&TLS_REQUEST.to_be_bytes());
    server.send(&request).await;
    match server.exactly(1).await?.as_slice() {
        b"S" => Ok(()),
        b"N" => Err(CheckError::unexpected("the server does not offer TLS")),
        _ => Err(CheckError::unexpected("answer is not that of PostgreSQL")),
    }
}

/// Begins a session, and ends it in order.
pub(super) async fn probe(
    mut server: ProbeConversation<'_>,
    check: &PostgresCheckConfig,
) -> Result<(), CheckError> {
    server.send(&startup(check)).await;
    let logs_in = check.password.is_some() || check.target != PostgresTarget::Any;
    let result = if logs_in {
        log_in(&mut server, check).await
    } else {
        answers(&mut server).await
    };
    server.send(&message(b'X', b"")).await;
    result
}

/// Judges the first answer alone.
async fn answers(server: &mut ProbeConversation<'_>) -> Result<(), CheckError> {
    let first = read_message(server).await?;
    match first.kind {
        b'R' => Ok(()),
        b'E' => {
            let error = SessionError::parse(&first.body);
            // Who we are is refused, or where we want to go: the server works.
            if error.code.starts_with("28") || error.code == "3D000" {
                return Ok(());
            }
            Err(CheckError::unexpected(error.to_string()))
        }
        _ => Err(CheckError::unexpected("answer is not that of PostgreSQL")),
    }
}

/// Logs in, and asks for the state if the check wants one.
async fn log_in(
    server: &mut ProbeConversation<'_>,
    check: &PostgresCheckConfig,
) -> Result<(), CheckError> {
    let mut scram = ScramState::None;
    for _ in 0..MAX_MESSAGES {
        let found = read_message(server).await?;
        match found.kind {
            b'R' => authenticate(server, &found.body, check, &mut scram).await?,
            b'E' => {
                let error = SessionError::parse(&found.body);
                return Err(CheckError::unexpected(error.to_string()));
            }
            // Ready for a query.
            b'Z' => {
                if matches!(scram, ScramState::Sent(_)) {
                    return Err(scram_failed(&ScramError::WrongServer));
                }
                return judge_target(server, check.target).await;
            }
            // Settings, notices and the key for a cancellation.
            _ => {}
        }
    }
    Err(CheckError::unexpected("too many messages before the login"))
}

/// Progress of SCRAM.
enum ScramState {
    None,
    Started(ScramStart),
    /// The proof was sent; the server's is missing.
    Sent(super::scram::ScramProof),
    Verified,
}

/// Answers one authentication request.
async fn authenticate(
    server: &mut ProbeConversation<'_>,
    body: &[u8],
    check: &PostgresCheckConfig,
    scram: &mut ScramState,
) -> Result<(), CheckError> {
    let malformed = || CheckError::unexpected("answer is not that of PostgreSQL");
    let (kind, rest) = body.split_first_chunk::<4>().ok_or_else(malformed)?;
    let kind = u32::from_be_bytes(*kind);
    if kind == AUTH_OK {
        return Ok(());
    }
    let password = check.password.as_ref().ok_or_else(|| {
        CheckError::unexpected("the server wants a password: set `password_file`")
    })?;
    match (kind, std::mem::replace(scram, ScramState::None)) {
        (AUTH_CLEARTEXT, _) => {
            let mut answer = password.reveal().to_vec();
            answer.push(0);
            server.send(&message(b'p', &answer)).await;
        }
        (AUTH_MD5, _) => {
            let salt = rest.first_chunk::<4>().ok_or_else(malformed)?;
            let answer = md5_answer(&check.user, password.reveal(), *salt);
            server.send(&message(b'p', answer.as_bytes())).await;
        }
        (AUTH_SASL, _) => {
            if !rest
                .split(|byte| *byte == 0)
                .any(|name| name == SCRAM_SHA_256)
            {
                return Err(unknown_login());
            }
            let start = ScramStart::new().map_err(|error| scram_failed(&error))?;
            server.send(&message(b'p', &sasl_start(&start))).await;
            *scram = ScramState::Started(start);
        }
        (AUTH_SASL_CONTINUE, ScramState::Started(start)) => {
            let first = std::str::from_utf8(rest)
                .map_err(|_| malformed())?
                .to_owned();
            let (answer, proof) = prove(start, first, password.clone()).await?;
            server.send(&message(b'p', answer.as_bytes())).await;
            *scram = ScramState::Sent(proof);
        }
        (AUTH_SASL_FINAL, ScramState::Sent(proof)) => {
            let last = std::str::from_utf8(rest).map_err(|_| malformed())?;
            proof.verify(last).map_err(|error| scram_failed(&error))?;
            *scram = ScramState::Verified;
        }
        _ => return Err(unknown_login()),
    }
    Ok(())
}

/// Computes the proof of SCRAM on a helper thread: its iterations would hold up all other checks.
async fn prove(
    start: ScramStart,
    first: String,
    password: SecretText,
) -> Result<(String, super::scram::ScramProof), CheckError> {
    let proving = spawn_blocking(move || start.answer(&first, password.reveal()));
    match proving.await {
        Ok(answer) => answer.map_err(|error| scram_failed(&error)),
        Err(panic) => Err(CheckError::Local(Box::new(panic))),
    }
}

fn scram_failed(error: &ScramError) -> CheckError {
    CheckError::unexpected(format!("the server is not trusted: {error}"))
}

fn unknown_login() -> CheckError {
    CheckError::unexpected("the server wants a way to log in that balancer does not have")
}

/// Asks whether the server is in recovery, and judges the answer.
async fn judge_target(
    server: &mut ProbeConversation<'_>,
    target: PostgresTarget,
) -> Result<(), CheckError> {
    if target == PostgresTarget::Any {
        return Ok(());
    }
    let mut query = IN_RECOVERY.as_bytes().to_vec();
    query.push(0);
    server.send(&message(b'Q', &query)).await;
    for _ in 0..MAX_MESSAGES {
        let found = read_message(server).await?;
        match found.kind {
            b'E' => {
                let error = SessionError::parse(&found.body);
                return Err(CheckError::unexpected(error.to_string()));
            }
            // A row of one column: their number, the length of the value, the value.
            b'D' => {
                return match (found.body.get(6), target) {
                    (Some(b'f'), PostgresTarget::Primary)
                    | (Some(b't'), PostgresTarget::Standby) => Ok(()),
                    (Some(b't'), _) => Err(CheckError::unexpected(
                        "the server is a standby, expected a primary",
                    )),
                    (Some(b'f'), _) => Err(CheckError::unexpected(
                        "the server is a primary, expected a standby",
                    )),
                    _ => Err(CheckError::unexpected("the server does not tell its state")),
                };
            }
            _ => {}
        }
    }
    Err(CheckError::unexpected("the server does not tell its state"))
}

/// The first message of a session.
fn startup(check: &PostgresCheckConfig) -> Vec<u8> {
    let mut body = PROTOCOL_VERSION.to_be_bytes().to_vec();
    let database = check.database.as_ref().unwrap_or(&check.user);
    for text in [
        "user",
        &check.user,
        "database",
        database,
        "application_name",
        "balancer-check",
        "",
    ] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// A message of ours behind the first.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The answer that begins SCRAM: its name, and the length of its first message before that.
fn sasl_start(start: &ScramStart) -> Vec<u8> {
    let first = start.message();
    let mut body = SCRAM_SHA_256.to_vec();
    body.push(0);
    body.extend_from_slice(&(first.len() as u32).to_be_bytes());
    body.extend_from_slice(first.as_bytes());
    body
}

/// `md5` and two digests: of password and user, then of that and the salt.
fn md5_answer(user: &str, password: &[u8], salt: [u8; 4]) -> String {
    let inner = md5::compute([password, user.as_bytes()].concat());
    let outer = md5::compute([format!("{inner:x}").as_bytes(), &salt].concat());
    format!("md5{outer:x}\0")
}

async fn read_message(server: &mut ProbeConversation<'_>) -> Result<ServerMessage, CheckError> {
    let header = server.exactly(5).await?;
    let malformed = || CheckError::unexpected("answer is not that of PostgreSQL");
    let (kind, length) = header.split_first().ok_or_else(malformed)?;
    let length = <[u8; 4]>::try_from(length).map_err(|_| malformed())?;
    let length = u32::from_be_bytes(length) as usize;
    let body = length
        .checked_sub(4)
        .filter(|length| *length <= MAX_MESSAGE_BYTES && kind.is_ascii_alphanumeric())
        .ok_or_else(malformed)?;
    Ok(ServerMessage {
        kind: *kind,
        body: server.exactly(body).await?,
    })
}

/// An error of the server: `FATAL 57P03: the database system is starting up`.
#[derive(Debug, PartialEq, Eq, Default)]
struct SessionError {
    severity: String,
    code: String,
    text: String,
}

impl SessionError {
    fn parse(body: &[u8]) -> Self {
        let mut error = Self::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, value)) = field.split_first() else {
                continue;
            };
            match kind {
                // `S` may be in another language.
                b'S' if error.severity.is_empty() => error.severity = shown(value),
                b'V' => error.severity = shown(value),
                b'C' => error.code = shown(value),
                b'M' => error.text = shown(value),
                _ => {}
            }
        }
        error
    }
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            severity,
            code,
            text,
        } = self;
        write!(f, "the server says {severity} {code}: {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_begins_with_its_length_version_and_settings() {
        let check = PostgresCheckConfig {
            user: "me".into(),
            database: Some("shop".into()),
            ..PostgresCheckConfig::default()
        };
        let bytes = startup(&check);
        assert_eq!(bytes[..8], [0, 0, 0, bytes.len() as u8, 0, 3, 0, 0]);
        assert!(bytes[8..].starts_with(b"user\0me\0database\0shop\0application_name\0"));
        assert!(bytes.ends_with(b"\0\0"));
        assert_eq!(message(b'X', b""), b"X\0\0\0\x04");
    }

    #[test]
    fn an_error_is_named_with_its_severity_and_code() {
        let parse = |bytes: &[u8]| SessionError::parse(bytes).to_string();
        assert_eq!(
            parse(b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"),
            "the server says FATAL 57P03: the database system is starting up"
        );
        assert_eq!(parse(b""), "the server says  : ");
    }

    #[test]
    fn a_password_is_hashed_with_user_and_salt() {
        let answer = md5_answer("me", b"secret", *b"abcd");
        assert_eq!(answer, "md5144b723776673e7e3ec447c5b47dd7a5\0");
    }
}
