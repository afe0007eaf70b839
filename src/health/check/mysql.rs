//! A mysql check: the server begins the handshake of protocol 10, and is ready for clients.
//!
//! The server counts clients that break off the handshake, and refuses all of a host that has too
//! many (`max_connect_errors`). So the check completes it: a login without a password, by a user
//! who need not exist. A login that is refused is not counted, and shows that the server works.

use super::{
    conversation::{ProbeConversation, shown},
    error::CheckError,
};

/// Version of the handshake.
const PROTOCOL_VERSION: u8 = 10;
/// First byte of an error packet.
const ERROR_PACKET: u8 = 0xff;
/// First byte of a packet that asks for another way to log in.
const AUTH_SWITCH_PACKET: u8 = 0xfe;
/// Packet that ends a session in order.
const COM_QUIT: [u8; 1] = [1];

const CLIENT_LONG_PASSWORD: u32 = 0x1;
const CLIENT_PROTOCOL_41: u32 = 0x200;
const CLIENT_SSL: u32 = 0x800;
const CLIENT_SECURE_CONNECTION: u32 = 0x8000;
const CLIENT_PLUGIN_AUTH: u32 = 0x8_0000;

/// Abilities of ours.
const CLIENT_FLAGS: u32 =
    CLIENT_LONG_PASSWORD | CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION | CLIENT_PLUGIN_AUTH;
/// Longest packet that we take.
const MAX_PACKET_BYTES: u32 = 1 << 14;
/// utf8_general_ci, which every version knows.
const CHARACTER_SET: u8 = 33;
/// Way of the login that is offered first.
const NATIVE_PASSWORD: &[u8] = b"mysql_native_password\0";

/// Errors of a login that are about the server and not about its user: out of memory, too many
/// connections, shutting down, host blocked, host not allowed, no thread.
const SERVER_ERRORS: [u16; 8] = [1037, 1038, 1040, 1041, 1053, 1129, 1130, 1135];

/// A server whose greeting was read.
pub(super) struct MysqlGreeting {
    flags: u32,
}

impl MysqlGreeting {
    /// Reads the first packet of a connection.
    pub(super) async fn read(server: &mut ProbeConversation<'_>) -> Result<Self, CheckError> {
        let packet = read_packet(server).await?;
        match packet.payload.split_first() {
            Some((&PROTOCOL_VERSION, rest)) => Self::parse(rest),
            Some((&ERROR_PACKET, rest)) => {
                Err(CheckError::unexpected(ServerError::parse(rest).to_string()))
            }
            Some((version, _)) => Err(CheckError::unexpected(format!(
                "the server speaks protocol {version}, expected 10"
            ))),
            None => Err(CheckError::unexpected("the greeting is empty")),
        }
    }

    /// Reads the rest of a greeting: version, id, 8 bytes of a challenge, a filler, flags.
    fn parse(rest: &[u8]) -> Result<Self, CheckError> {
        let malformed = || CheckError::unexpected("the greeting is malformed");
        let end = memchr::memchr(0, rest).ok_or_else(malformed)?;
        let fixed = rest.get(end + 1 + 13..).ok_or_else(malformed)?;
        let half = |at: usize| Some(u16::from_le_bytes([*fixed.get(at)?, *fixed.get(at + 1)?]));
        let low = half(0).ok_or_else(malformed)?;
        // Behind the character set and the status; old servers end here.
        let high = half(5).unwrap_or(0);
        Ok(Self {
            flags: u32::from(low) | u32::from(high) << 16,
        })
    }

    /// True if the server speaks TLS.
    pub(super) const fn offers_tls(&self) -> bool {
        self.flags & CLIENT_SSL != 0
    }
}

/// Packet that begins TLS. The server answers with its handshake.
pub(super) fn tls_request() -> Vec<u8> {
    packet(1, &login_start(CLIENT_FLAGS | CLIENT_SSL))
}

/// Completes the handshake as `user`; `number` is that of the next packet.
pub(super) async fn finish(
    mut server: ProbeConversation<'_>,
    greeting: &MysqlGreeting,
    user: &str,
    number: u8,
) -> Result<(), CheckError> {
    if greeting.flags & CLIENT_PROTOCOL_41 == 0 {
        // Older than version 4.1: it is there, and its login is another one.
        return Ok(());
    }
    let is_tls = server.stream().tls().is_some();
    let mut login = login_start(CLIENT_FLAGS | if is_tls { CLIENT_SSL } else { 0 });
    login.extend_from_slice(user.as_bytes());
    // The end of the name, and a password of no bytes.
    login.extend_from_slice(&[0, 0]);
    login.extend_from_slice(NATIVE_PASSWORD);
    server.send(&packet(number, &login)).await;
    // The server may ask for another way once.
    for _ in 0..2 {
        let reply = read_packet(&mut server).await?;
        match reply.payload.split_first() {
            Some((&ERROR_PACKET, rest)) => return judge(&ServerError::parse(rest)),
            Some((&AUTH_SWITCH_PACKET, rest)) => {
                let answer = no_password(rest);
                server
                    .send(&packet(reply.number.wrapping_add(1), answer))
                    .await;
            }
            // Logged in, or asked for a password that there is not.
            _ => break,
        }
    }
    server.send(&packet(0, &COM_QUIT)).await;
    Ok(())
}

/// The answer that says "no password" for the way that `request` asks for. A malformed one would
/// be counted.
fn no_password(request: &[u8]) -> &'static [u8] {
    let is_sha2 = request.starts_with(b"caching_sha2_password\0")
        || request.starts_with(b"sha256_password\0");
    if is_sha2 { &[0] } else { &[] }
}

/// Judges an error that answers a login.
fn judge(error: &ServerError) -> Result<(), CheckError> {
    if SERVER_ERRORS.contains(&error.code) {
        return Err(CheckError::unexpected(error.to_string()));
    }
    Ok(())
}

/// The part of a login that a request for TLS consists of.
fn login_start(flags: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&MAX_PACKET_BYTES.to_le_bytes());
    bytes.push(CHARACTER_SET);
    bytes.extend_from_slice(&[0; 23]);
    bytes
}

/// A packet: length in three bytes, number, content.
fn packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
    bytes.truncate(3);
    bytes.push(number);
    bytes.extend_from_slice(payload);
    bytes
}

/// A packet of the server.
struct MysqlPacket {
    number: u8,
    payload: Vec<u8>,
}

async fn read_packet(server: &mut ProbeConversation<'_>) -> Result<MysqlPacket, CheckError> {
    let header = server.exactly(4).await?;
    let [low, middle, high, number] = header.as_slice() else {
        return Err(CheckError::Closed);
    };
    let length = u32::from_le_bytes([*low, *middle, *high, 0]);
    if length > MAX_PACKET_BYTES {
        return Err(CheckError::unexpected("answer is not a packet of MySQL"));
    }
    Ok(MysqlPacket {
        number: *number,
        payload: server.exactly(length as usize).await?,
    })
}

/// An error packet behind its first byte.
#[derive(Debug, PartialEq, Eq)]
struct ServerError {
    code: u16,
    text: String,
}

impl ServerError {
    fn parse(rest: &[u8]) -> Self {
        let (code, text) = rest.split_at_checked(2).unwrap_or((&[], rest));
        let code = <[u8; 2]>::try_from(code).map_or(0, u16::from_le_bytes);
        // A state of five characters, which the greeting's error does not have.
        let text = match text.split_first() {
            Some((b'#', after)) => after.get(5..).unwrap_or_default(),
            _ => text,
        };
        Self {
            code,
            text: shown(text),
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server says {}: {}", self.code, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_code_a_state_and_a_text() {
        let parse = |bytes: &[u8]| ServerError::parse(bytes).to_string();
        assert_eq!(
            parse(b"\x69\x04Host 'x' is blocked"),
            "the server says 1129: Host 'x' is blocked"
        );
        assert_eq!(
            parse(b"\x15\x04#28000Access denied"),
            "the server says 1045: Access denied"
        );
        assert_eq!(parse(b""), "the server says 0: ");
        assert_eq!(parse(b"\x15\x04#28"), "the server says 1045: ");
    }

    #[test]
    fn a_packet_has_its_length_and_number() {
        assert_eq!(packet(7, b"abc"), b"\x03\x00\x00\x07abc");
        assert_eq!(tls_request().len(), 4 + 32);
    }

    #[test]
    fn a_greeting_that_is_cut_is_malformed_and_an_old_one_has_half_of_the_flags() {
        let whole = b"8.0.36\0abcd12345678\0\xff\xf7\x21\x02\x00\xff\xc7";
        for length in 0..22 {
            assert!(MysqlGreeting::parse(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(MysqlGreeting::parse(whole).ok().unwrap().flags, 0xc7ff_f7ff);
        let old = MysqlGreeting::parse(&whole[..22]).ok().unwrap();
        assert_eq!(old.flags, 0xf7ff);
    }
}
