//! Receives exactly one PROXY header from a stream, and sends one.

use std::{future::poll_fn, io};

use super::{
    header::ProxyHeader,
    parse::{self, ProxyHeaderError},
};
use crate::{config::model::ProxyVersion, net::stream::Stream};

/// Bytes peeked at before the length of a header is known; most headers are shorter.
const FIRST_PEEK_BYTES: usize = 256;

/// Cause of a header that was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveHeaderError {
    /// The peer closed without having sent a byte.
    #[error("closed before the first byte")]
    Silent,
    /// The peer closed within the header.
    #[error("closed in the middle of the header")]
    Cut,
    /// The bytes are not a header of an allowed version.
    #[error("{0}")]
    Invalid(#[from] ProxyHeaderError),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes one header off the beginning of `stream`, and not a byte more. Without `version` both
/// versions are allowed. Has no deadline of its own.
///
/// Bytes are peeked at before they are read: what follows the header belongs to TLS or HTTP, whose
/// readers expect it in the stream.
pub async fn receive_header(
    stream: &Stream,
    version: Option<ProxyVersion>,
) -> Result<ProxyHeader, ReceiveHeaderError> {
    let mut seen = Vec::new();
    loop {
        // Peek at more.
        poll_fn(|cx| stream.poll_read_ready(cx)).await?;
        let before = seen.len();
        let wanted = parse::whole_length(&seen).unwrap_or(FIRST_PEEK_BYTES);
        debug_assert!(wanted > before, "the header was whole before");
        seen.resize(wanted, 0);
        let space = seen.get_mut(before..).unwrap_or_default();
        let count = match stream.try_peek(space) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                seen.truncate(before);
                continue;
            }
            peeked => peeked?,
        };
        if count == 0 {
            return Err(if before == 0 {
                ReceiveHeaderError::Silent
            } else {
                ReceiveHeaderError::Cut
            });
        }
        seen.truncate(before + count);

        // Parse, and take what belongs to the header: while it is not whole, all of it does.
        let found = parse::parse(&seen, version)?;
        let end = found.map_or(seen.len(), |(_, length)| length);
        debug_assert!(before <= end, "a header that ends in bytes taken before");
        take(stream, seen.get_mut(before..end).unwrap_or_default())?;
        if let Some((header, _)) = found {
            return Ok(header);
        }
    }
}

/// Reads bytes that were peeked at a moment ago.
fn take(stream: &Stream, bytes: &mut [u8]) -> io::Result<()> {
    if stream.try_read(bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sends `header` as the first bytes of a new connection. With `more` it waits for bytes that
/// follow at once, and leaves in one segment with them.
///
/// The send buffer of a new connection has space for it. Where it has not, that is an error: the
/// alternative would be half a header.
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
