//! A conversation with a server that does not speak HTTP: bytes are sent, and what comes is read
//! with a limit.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{error::CheckError, phases::PhaseClock};
use crate::net::stream::Stream;

/// Most bytes that are read for one answer: a bound on the memory that a check can take.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Free buffer space for a read.
const READ_BYTES: usize = 4 * 1024;

/// Most characters of an answer that a cause shows.
const MAX_SHOWN_CHARS: usize = 100;

/// The two sides of a check.
pub(super) struct ProbeConversation<'a> {
    stream: Stream,
    /// Received and not used yet.
    received: Vec<u8>,
    phases: &'a PhaseClock,
}

impl<'a> ProbeConversation<'a> {
    /// Begins on an open connection.
    pub(super) const fn new(stream: Stream, phases: &'a PhaseClock) -> Self {
        Self {
            stream,
            received: Vec::new(),
            phases,
        }
    }

    /// Sends `bytes`. The next read reports a connection that is broken: the server may have said
    /// why before.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads at least one more byte, while less than [`MAX_ANSWER_BYTES`] are unused.
    pub(super) async fn read_more(&mut self) -> Result<(), CheckError> {
        if self.received.len() >= MAX_ANSWER_BYTES {
            return Err(CheckError::unexpected("answer is longer than 64 KiB"));
        }
        self.received.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => Err(CheckError::Closed),
            Ok(_) => {
                self.phases.received();
                Ok(())
            }
            Err(error) => Err(CheckError::from_io(error)),
        }
    }

    /// Takes the next `count` bytes; waits for them.
    pub(super) async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, CheckError> {
        while self.received.len() < count {
            self.read_more().await?;
        }
        Ok(self.take(count))
    }

    /// Takes the next line, without its end.
    pub(super) async fn line(&mut self) -> Result<Vec<u8>, CheckError> {
        let mut searched = 0;
        loop {
            let unsearched = self.received.get(searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', unsearched) {
                let mut line = self.take(searched + at + 1);
                line.pop();
                line.pop_if(|byte| *byte == b'\r');
                return Ok(line);
            }
            searched = self.received.len();
            self.read_more().await?;
        }
    }

    /// Bytes that are received and not used.
    pub(super) fn unused(&self) -> &[u8] {
        &self.received
    }

    /// Takes the first `count` unused bytes, or all if there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.received.split_off(count.min(self.received.len()));
        std::mem::replace(&mut self.received, rest)
    }

    /// The connection below.
    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes the connection for a TLS handshake. The answer that allows it must have been all:
    /// bytes behind it were not protected, and could be anybody's.
    pub(super) fn into_plain_stream(self) -> Result<Stream, CheckError> {
        if self.received.is_empty() {
            return Ok(self.stream);
        }
        Err(CheckError::unexpected("bytes in plain before TLS"))
    }

    /// Waits until the server ends the connection, and drops what it still sends. The caller limits
    /// the time.
    pub(super) async fn wait_for_end(&mut self) {
        loop {
            self.received.clear();
            if self.read_more().await.is_err() {
                return;
            }
        }
    }
}

/// Bytes of a server for the cause of a failure: in ASCII, without control characters, and short.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text: String = bytes
        .iter()
        .take(MAX_SHOWN_CHARS)
        .flat_map(|byte| match byte {
            b' '..=b'~' => vec![char::from(*byte)],
            _ => byte.escape_ascii().map(char::from).collect(),
        })
        .collect();
    if bytes.len() > MAX_SHOWN_CHARS {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_shown_short_and_without_control_characters() {
        assert_eq!(
            shown(b"-ERR \"no\"\r\n\x1b\xff"),
            "-ERR \"no\"\\r\\n\\x1b\\xff"
        );
        let long = shown(&[b'a'; 1000]);
        assert_eq!(long.len(), MAX_SHOWN_CHARS + 3);
    }
}
