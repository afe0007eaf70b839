//! The PROXY protocol, versions 1 and 2: who the client is, told by whoever stands before us, and told by us to a backend.
//!
//! Here are the two ends of a connection and the two things done with a header on a stream: to receive exactly one, and to
//! send one. What a header means is decided in `parse.rs`, how it is written in `encode.rs`; both are pure. Whose headers are
//! believed is not known here.

mod encode;
mod parse;
#[cfg(test)]
mod tests;

pub use self::{
    encode::{encode, encode_local},
    parse::{MAX_HEADER_BYTES, ProxyHeaderError, parse},
};

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
};

use super::stream::Stream;
use crate::config::model::ProxyVersion;

/// Bytes that are looked at before the length of a header is known; most headers are shorter.
const FIRST_LOOK: usize = 256;

/// Both ends of a client's connection. IPv4 addresses are always given as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionEnds {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

impl ConnectionEnds {
    /// Ends given as IPv4 where they are IPv4, however they were written.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            source: canonical(source),
            destination: canonical(destination),
        }
    }

    /// What the system says of `stream`; `None` on unix sockets.
    pub fn of(stream: &Stream) -> Option<Self> {
        Some(Self::new(stream.peer_addr()?, stream.local_addr()?))
    }
}

/// What a header says of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// Nothing: `LOCAL`, `UNKNOWN`, or a kind of connection that a listener of ours cannot have. The connection itself tells.
    Own,
    /// The client came over a unix socket: it has no address.
    Unix,
    /// The client's own connection.
    Proxied(ConnectionEnds),
}

impl ProxyHeader {
    /// The client's address, when the connection itself comes from `peer`.
    pub fn client(&self, peer: Option<IpAddr>) -> Option<IpAddr> {
        match self {
            Self::Own => peer,
            Self::Unix => None,
            Self::Proxied(ends) => Some(ends.source.ip()),
        }
    }

    /// Both ends of the client's connection, of which `stream` is the last part.
    pub fn ends(&self, stream: &Stream) -> Option<ConnectionEnds> {
        match self {
            Self::Own => ConnectionEnds::of(stream),
            Self::Unix => None,
            Self::Proxied(ends) => Some(*ends),
        }
    }
}

/// Why no header was received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveHeaderError {
    /// The peer closed without having sent a byte.
    #[error("closed before the first byte")]
    Silent,
    /// The peer closed in the middle.
    #[error("closed in the middle of the header")]
    Cut,
    /// What came is not a header of a version that is allowed.
    #[error("{0}")]
    Invalid(#[from] ProxyHeaderError),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes one header off the beginning of `stream`, and not a byte more. Without `version` both are taken.
///
/// What arrives is looked at before it is taken, so that whatever follows the header stays where the next reader expects it.
/// Has no deadline of its own.
pub async fn receive_header(
    stream: &Stream,
    version: Option<ProxyVersion>,
) -> Result<ProxyHeader, ReceiveHeaderError> {
    let mut seen = Vec::new();
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx)).await?;
        let had = seen.len();
        seen.resize(parse::whole_length(&seen).unwrap_or(FIRST_LOOK), 0);
        let room = seen.get_mut(had..).unwrap_or_default();
        let count = match stream.try_peek(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                seen.truncate(had);
                continue;
            }
            peeked => peeked?,
        };
        if count == 0 {
            return Err(if had == 0 {
                ReceiveHeaderError::Silent
            } else {
                ReceiveHeaderError::Cut
            });
        }
        seen.truncate(had + count);
        let found = parse(&seen, version)?;
        // Without a whole header all that is there belongs to it.
        let end = found.map_or(seen.len(), |(_, length)| length);
        take(stream, seen.get_mut(had..end).unwrap_or_default())?;
        if let Some((header, _)) = found {
            return Ok(header);
        }
    }
}

/// Reads bytes that were seen in the stream a moment ago.
fn take(stream: &Stream, bytes: &mut [u8]) -> io::Result<()> {
    if stream.try_read(bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sends `header` as the first thing on a new connection. With `more` it waits for the bytes that follow at once, and goes
/// out with them in one segment.
///
/// The buffer of a new connection has room for it; a system where it has not is an error rather than half a header.
pub fn send_header(stream: &Stream, header: &[u8], more: bool) -> io::Result<()> {
    let written = if more {
        stream.try_write_last(header)?
    } else {
        stream.try_write(header)?
    };
    if written == header.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
