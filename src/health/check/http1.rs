//! One request over HTTP/1.1 on its own connection or HTTP/2 stream. The response is read by the
//! codec that reads those of traffic, so that framing which fails requests fails checks too.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::error::CheckError;
use crate::{
    http::{
        message::{BodyFraming, ResponseHead},
        rules::{MAX_HEAD_BYTES, RESPONSE_LIMITS},
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        head_end, response,
    },
    net::stream::Stream,
};

/// The `User-Agent` of all checks.
pub(super) const USER_AGENT: &str = "balancer-check";

/// Maximum of 1xx responses that are skipped, as for traffic.
const MAX_INTERIM_RESPONSES: u32 = 16;

/// Heads below this size are parsed at every read, so that garbage fails at once. Longer ones are
/// parsed when their end is there: parsing each read again would cost the square of the length.
const EAGER_PARSE_BYTES: usize = 1024;

/// Free buffer space for a read.
const READ_BYTES: usize = 8 * 1024;

/// Length of the part of a body that is judged if no text is expected in it.
const MAX_JUDGED_BYTES: usize = 64 * 1024;

/// Time to wait for such a body: most servers send it together with its head, and a slow body must
/// not slow down the check of a status.
const BODY_TIMEOUT: Duration = Duration::from_millis(100);

/// A response whose head was received.
pub(super) struct CheckResponse {
    stream: Stream,
    /// The head.
    pub(super) head: ResponseHead,
    /// Received and not decoded yet.
    undecoded: Vec<u8>,
    decoder: Option<BodyDecoder>,
}

impl CheckResponse {
    /// Sends `request` and reads the head of the final response to it.
    pub(super) async fn fetch(
        mut stream: Stream,
        method: &str,
        request: &[u8],
    ) -> Result<Self, CheckError> {
        // The read reports a failed write: the response may be there all the same.
        let _ = stream.write_all(request).await;
        let mut head = ResponseHead::default();
        let mut interim = 0;
        loop {
            let mut from = head.bytes.len();
            read(&mut stream, &mut head.bytes).await?;
            // One read may bring several heads.
            while may_parse(&head.bytes, from) && parse(&mut head, method)? {
                let undecoded = head.bytes.split_off(head.len);
                if !head.is_interim() {
                    return Ok(Self {
                        decoder: decoder(&head.framing),
                        stream,
                        head,
                        undecoded,
                    });
                }
                interim += 1;
                if interim > MAX_INTERIM_RESPONSES {
                    let cause = "more than 16 interim responses";
                    return Err(CheckError::InvalidHttp(cause.to_owned()));
                }
                (head.bytes, from) = (undecoded, 0);
            }
        }
    }

    /// The next part of the body; `None` is its end.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<u8>, CheckError>> {
        loop {
            let decoder = self.decoder.as_mut()?;
            match decoder.step(&self.undecoded) {
                Ok(BodyStep::Data(count)) => {
                    let rest = self.undecoded.split_off(count);
                    return Some(Ok(std::mem::replace(&mut self.undecoded, rest)));
                }
                Ok(BodyStep::Skip(count)) => drop(self.undecoded.drain(..count)),
                Ok(BodyStep::End) => return None,
                Ok(BodyStep::More) => match read(&mut self.stream, &mut self.undecoded).await {
                    Ok(()) => {}
                    Err(CheckError::Closed) if matches!(decoder, BodyDecoder::UntilClose) => {
                        return None;
                    }
                    Err(error) => return Some(Err(error)),
                },
                Err(malformed) => {
                    return Some(Err(CheckError::InvalidHttp(malformed.to_string())));
                }
            }
        }
    }

    /// Judges the framing of a body without an expected text, as far as it comes within
    /// [`BODY_TIMEOUT`].
    pub(super) async fn judge_body(&mut self) -> Result<(), CheckError> {
        let mut left = match self.head.framing {
            // Without framing there is nothing to judge.
            BodyFraming::None | BodyFraming::UntilClose => 0,
            BodyFraming::Length(_) | BodyFraming::Streamed(_) => MAX_JUDGED_BYTES,
        };
        let judged = async {
            while left > 0
                && let Some(part) = self.next().await
            {
                left = left.saturating_sub(part?.len());
            }
            Ok(())
        };
        timeout(BODY_TIMEOUT, judged).await.unwrap_or(Ok(()))
    }

    /// The value of a field of the head.
    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.fields.values(name, &self.head.bytes).next()
    }

    /// The trailer section of a body that was read to its end: lines, empty if there is none.
    pub(super) fn trailers(&self) -> &[u8] {
        self.decoder.as_ref().map_or(&[], BodyDecoder::trailers)
    }
}

/// True if a head may be parsed now, of which the bytes before `from` were looked at already.
fn may_parse(bytes: &[u8], from: usize) -> bool {
    let is_short = bytes.len() < EAGER_PARSE_BYTES;
    is_short || bytes.len() >= MAX_HEAD_BYTES || head_end(bytes, from).is_some()
}

/// Parses the bytes of `head`; false if its end is missing.
fn parse(head: &mut ResponseHead, method: &str) -> Result<bool, CheckError> {
    response::parse(head, method.as_bytes())
        .map_err(|invalid| CheckError::InvalidHttp(invalid.detail.to_owned()))
}

/// The decoder for the body; `None` if there is none.
fn decoder(framing: &BodyFraming) -> Option<BodyDecoder> {
    match framing {
        BodyFraming::None => None,
        BodyFraming::Length(length) => Some(BodyDecoder::Length(*length)),
        BodyFraming::Streamed(_) => Some(BodyDecoder::chunked(RESPONSE_LIMITS)),
        BodyFraming::UntilClose => Some(BodyDecoder::UntilClose),
    }
}

/// Reads at least one byte.
async fn read(stream: &mut Stream, bytes: &mut Vec<u8>) -> Result<(), CheckError> {
    bytes.reserve(READ_BYTES);
    match stream.read_buf(bytes).await {
        Ok(0) => Err(CheckError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(CheckError::from_stream(error)),
    }
}
