//! Parser of ClientHellos: the server name, and whether TLS 1.3 is offered. Pure: bytes in, a
//! result out.
//!
//! For connections whose TLS is passed through to a backend. A parser of our own, because rustls
//! refuses hellos that only the backend has to understand. It checks lengths and reads the
//! extensions it needs; cipher suites and all other extensions (GREASE, key shares of any size,
//! ECH, whose outer name counts) are left to the backend.
//!
//! A fault of a prefix is the fault of the whole: the result must not depend on how TCP or the
//! client's records split the bytes, or an attacker could choose which name is seen. Must not know
//! what the name is used for.

use std::borrow::Cow;

/// Longest ClientHello that is accepted, in bytes of the handshake message. Post-quantum key shares
/// make it 2 KiB; this is as much as one record can carry.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Bytes within which the ClientHello must end, record headers included. Records may be as small as
/// five bytes each in the longest hello, or one byte each in a usual one.
pub const MAX_HELLO_BYTES: usize = 32 << 10;

/// Content type of handshake records, RFC 8446 section 5.1.
const HANDSHAKE_RECORD: u8 = 22;
/// Longest fragment of a record, RFC 8446 section 5.1.
const MAX_FRAGMENT_BYTES: usize = 1 << 14;
/// Type of the handshake message, RFC 8446 section 4.
const CLIENT_HELLO: u8 = 1;
/// Type of the extension with the server name, RFC 6066 section 3.
const SERVER_NAME: u16 = 0;
/// Type of the only kind of server name.
const HOST_NAME: u8 = 0;
/// Type of the extension with the offered versions, RFC 8446 section 4.2.1.
const SUPPORTED_VERSIONS: u16 = 43;
/// Number of TLS 1.3 in that extension.
const TLS_13: [u8; 2] = [3, 4];
/// Bytes before the fragment of a record.
const RECORD_HEADER: usize = 5;
/// Bytes before the body of a handshake message.
const MESSAGE_HEADER: usize = 4;

/// A whole ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedClientHello {
    /// Host that the client asks for (SNI): letters, digits, `-`, `_` and dots, in lower case,
    /// without a final dot.
    pub server_name: Option<Box<str>>,
    /// The client offers TLS 1.3.
    pub offers_13: bool,
}

/// Fault of bytes that do not begin with a ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub enum ClientHelloError {
    /// No record of a TLS handshake.
    NotTls,
    /// Longer than [`MAX_MESSAGE_BYTES`], or not complete within [`MAX_HELLO_BYTES`].
    TooLarge,
    /// Violates the format; the text is fixed and repeats nothing of the bytes.
    Malformed(&'static str),
}

impl ClientHelloError {
    /// The fault in words.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotTls => "not TLS",
            Self::TooLarge => "the ClientHello is too large",
            Self::Malformed(detail) => detail,
        }
    }
}

const CUT_SHORT: ClientHelloError =
    ClientHelloError::Malformed("a length in the ClientHello goes beyond its end");

/// Parses the ClientHello at the beginning of `bytes`; `None` while bytes are missing. Bytes behind
/// its last record are ignored.
pub fn parse(bytes: &[u8]) -> Result<Option<ParsedClientHello>, ClientHelloError> {
    ClientHelloParser::default().parse(bytes)
}

/// A parser for bytes that arrive in pieces. It remembers the records it has seen, so that a hello
/// that drips in is not parsed again with every byte.
#[derive(Debug, Default)]
pub struct ClientHelloParser {
    /// Position of the first record that is not complete.
    position: usize,
    /// Beginning of the message, from the records before it.
    start: MessageStart,
}

impl ClientHelloParser {
    /// Parses as [`parse`] does; `bytes` begin with all bytes of the calls before.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Option<ParsedClientHello>, ClientHelloError> {
        let seen = bytes.get(..MAX_HELLO_BYTES).unwrap_or(bytes);
        debug_assert!(self.position <= seen.len(), "not the bytes of before");
        while let Some(record) = record(
            seen.get(self.position..).unwrap_or_default(),
            self.position == 0,
        )? {
            let announced = self.start.seen + record.length;
            let mut start = self.start;
            start.add(record.fragment);
            if let Some(length) = start.message_length()? {
                if announced > length {
                    return Err(ClientHelloError::Malformed(
                        "a record goes on behind the ClientHello",
                    ));
                }
                if start.seen == length {
                    return message(seen, length).map(Some);
                }
            }
            if start.seen < announced {
                break;
            }
            self.start = start;
            self.position += RECORD_HEADER + record.length;
        }
        if bytes.len() < MAX_HELLO_BYTES {
            Ok(None)
        } else {
            Err(ClientHelloError::TooLarge)
        }
    }
}

/// A handshake record, as much of it as has arrived.
struct HandshakeRecord<'a> {
    /// Length of the whole fragment.
    length: usize,
    fragment: &'a [u8],
}

/// Parses the record at the beginning of `bytes`; `None` while its header is not complete. The
/// version in it tells TLS from other protocols and nothing else, RFC 8446 section 5.1.
fn record(bytes: &[u8], is_first: bool) -> Result<Option<HandshakeRecord<'_>>, ClientHelloError> {
    match bytes {
        [kind, ..] if *kind != HANDSHAKE_RECORD => Err(if is_first {
            ClientHelloError::NotTls
        } else {
            ClientHelloError::Malformed("another record in the middle of the ClientHello")
        }),
        [_, major, ..] if *major != 3 => Err(if is_first {
            ClientHelloError::NotTls
        } else {
            ClientHelloError::Malformed("a record of an unknown version")
        }),
        [_, _, _, high, low, rest @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            match length {
                0 => Err(ClientHelloError::Malformed("an empty record")),
                1..=MAX_FRAGMENT_BYTES => Ok(Some(HandshakeRecord {
                    length,
                    fragment: rest.get(..length).unwrap_or(rest),
                })),
                _ => Err(ClientHelloError::Malformed("a record that is too long")),
            }
        }
        _ => Ok(None),
    }
}

/// Header of the handshake message, which several records may share, and the bytes of it seen so
/// far.
#[derive(Debug, Clone, Copy, Default)]
struct MessageStart {
    bytes: [u8; 4],
    seen: usize,
}

impl MessageStart {
    fn add(&mut self, fragment: &[u8]) {
        let missing = self.bytes.iter_mut().skip(self.seen);
        for (place, byte) in missing.zip(fragment) {
            *place = *byte;
        }
        self.seen += fragment.len();
    }

    /// Returns the length of the message and its header, once the header is complete.
    fn message_length(&self) -> Result<Option<usize>, ClientHelloError> {
        let [kind, high, middle, low] = self.bytes;
        if self.seen > 0 && kind != CLIENT_HELLO {
            return Err(ClientHelloError::Malformed(
                "another message than a ClientHello",
            ));
        }
        if self.seen < self.bytes.len() {
            return Ok(None);
        }
        let length = self.bytes.len() + u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Err(ClientHelloError::TooLarge);
        }
        Ok(Some(length))
    }
}

/// Parses the complete message in the records at the beginning of `bytes`.
fn message(bytes: &[u8], length: usize) -> Result<ParsedClientHello, ClientHelloError> {
    let message = match bytes.get(RECORD_HEADER..RECORD_HEADER + length) {
        Some(whole) if record(bytes, true)?.is_some_and(|first| first.length == length) => {
            Cow::Borrowed(whole)
        }
        _ => Cow::Owned(joined(bytes, length)?),
    };
    debug_assert!(message.len() == length, "the message is complete");
    hello(message.get(MESSAGE_HEADER..).unwrap_or_default())
}

/// Joins the fragments of as many records as `length` bytes need.
fn joined(mut bytes: &[u8], length: usize) -> Result<Vec<u8>, ClientHelloError> {
    let mut message = Vec::with_capacity(length);
    while message.len() < length
        && let Some(record) = record(bytes, false)?
    {
        message.extend_from_slice(record.fragment);
        bytes = bytes
            .get(RECORD_HEADER + record.length..)
            .unwrap_or_default();
    }
    Ok(message)
}

/// Parses the body of a ClientHello: RFC 8446 section 4.1.2, or RFC 5246 section 7.4.1.2, where the
/// extensions may be missing.
fn hello(body: &[u8]) -> Result<ParsedClientHello, ClientHelloError> {
    const VERSION_AND_RANDOM: usize = 2 + 32;

    // Fixed part: only the lengths are checked.
    let mut body = ByteReader(body);
    body.take(VERSION_AND_RANDOM)?;
    let session = body.vector_8()?;
    let suites = body.vector_16()?;
    let compression = body.vector_8()?;
    let fits = session.len() <= 32
        && !suites.is_empty()
        && suites.len().is_multiple_of(2)
        && !compression.is_empty();
    if !fits {
        return Err(ClientHelloError::Malformed(
            "a list of the ClientHello has a length it cannot have",
        ));
    }

    // Extensions.
    let (mut server_name, mut offers_13) = (None, false);
    if !body.0.is_empty() {
        let mut extensions = ByteReader(body.vector_16()?);
        if !body.0.is_empty() {
            return Err(ClientHelloError::Malformed("bytes behind the extensions"));
        }
        while !extensions.0.is_empty() {
            let (kind, data) = (extensions.number_16()?, extensions.vector_16()?);
            if kind == SUPPORTED_VERSIONS {
                let (versions, _) = data.get(1..).unwrap_or_default().as_chunks();
                offers_13 |= versions.contains(&TLS_13);
            }
            if kind != SERVER_NAME {
                continue;
            }
            // The backend might read the other one: RFC 8446 section 4.2 allows one of each type.
            if server_name.is_some() {
                return Err(ClientHelloError::Malformed("two server name extensions"));
            }
            server_name = Some(name_in(data)?);
        }
    }
    Ok(ParsedClientHello {
        server_name,
        offers_13,
    })
}

/// Parses the one name in a server name extension, RFC 6066 section 3. Other kinds of names were
/// never defined and cannot be: a parser that does not know them could not skip them.
fn name_in(data: &[u8]) -> Result<Box<str>, ClientHelloError> {
    let mut data = ByteReader(data);
    let mut list = ByteReader(data.vector_16()?);
    let kind = list.take(1)?;
    let name = list.vector_16()?;
    if !data.0.is_empty() || !list.0.is_empty() || kind != [HOST_NAME] {
        return Err(ClientHelloError::Malformed(
            "not one host name in the server name extension",
        ));
    }
    host_name(name).ok_or(ClientHelloError::Malformed(
        "the server name is not a host name",
    ))
}

/// Returns the normal form of a host name; `None` if it is not one. An IPv4 address passes: as a
/// name it matches nothing.
fn host_name(name: &[u8]) -> Option<Box<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_name = name.len() <= 253 && name.split(|byte| *byte == b'.').all(is_label);
    let name = is_name.then(|| str::from_utf8(name).ok())??;
    Some(name.to_ascii_lowercase().into())
}

/// Reads bytes from the front.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ClientHelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT_SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number_16(&mut self) -> Result<u16, ClientHelloError> {
        let bytes = self.take(2)?.try_into().map_err(|_| CUT_SHORT)?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// Takes as many bytes as the first one says.
    fn vector_8(&mut self) -> Result<&'a [u8], ClientHelloError> {
        let length = self
            .take(1)?
            .first()
            .map_or(0, |length| usize::from(*length));
        self.take(length)
    }

    /// Takes as many bytes as the first two say.
    fn vector_16(&mut self) -> Result<&'a [u8], ClientHelloError> {
        let length = usize::from(self.number_16()?);
        self.take(length)
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
