//! One request over HTTP/1.1 on a connection of its own; on a stream of HTTP/2 it is the same. The response is read by the
//! codec that reads those of traffic, so that a framing which fails requests fails checks too.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::CheckError;
use crate::{
    http1::{
        body::{BodyDecoder, BodyStep},
        head_end,
        response::{MAX_HEAD_BYTES, RESPONSE_LIMITS, ResponseFraming, ResponseHead},
    },
    net::{h2::StreamError, local_error, stream::Stream},
};

/// Most 1xx responses that are passed over, as for traffic.
const MAX_INTERIM: u32 = 16;

/// Up to this many bytes a head is parsed at every read, so that garbage is known at once.
const EAGER_BYTES: usize = 1024;

/// Room made for a read.
const READ_BYTES: usize = 8 * 1024;

/// How much of a body that nothing is expected of is judged.
const MAX_JUDGED: usize = 64 * 1024;

/// How long a body that nothing is expected of is waited for: most servers send it together with its head.
const BODY_WAIT: Duration = Duration::from_millis(100);

/// A response whose head is there.
pub(super) struct CheckResponse {
    stream: Stream,
    /// The head.
    pub(super) head: ResponseHead,
    /// What `head` was parsed from.
    pub(super) head_bytes: Vec<u8>,
    /// Received and not decoded.
    rest: Vec<u8>,
    decoder: Option<BodyDecoder>,
}

impl CheckResponse {
    /// Sends `request` and reads the head of the final response to it.
    pub(super) async fn ask(
        mut stream: Stream,
        method: &str,
        request: &[u8],
    ) -> Result<Self, CheckError> {
        // What a failed write means, the read says: the response may be there all the same.
        let _ = stream.write_all(request).await;
        let (mut head, mut bytes) = (ResponseHead::default(), Vec::new());
        let mut interim = 0;
        loop {
            let before = bytes.len();
            read(&mut stream, &mut bytes).await?;
            let mut from = before;
            loop {
                let may_be_whole = bytes.len() < EAGER_BYTES || bytes.len() >= MAX_HEAD_BYTES;
                if !may_be_whole && head_end(&bytes, from).is_none() {
                    break;
                }
                if !head
                    .parse(&bytes, method.as_bytes())
                    .map_err(|invalid| not_http(invalid.detail))?
                {
                    break;
                }
                let rest = bytes.split_off(head.len);
                if !head.is_interim() {
                    let decoder = match head.framing {
                        ResponseFraming::None => None,
                        ResponseFraming::Length(length) => Some(BodyDecoder::Length(length)),
                        ResponseFraming::Chunked => Some(BodyDecoder::chunked(RESPONSE_LIMITS)),
                        ResponseFraming::UntilClose => Some(BodyDecoder::UntilClose),
                    };
                    return Ok(Self {
                        stream,
                        head,
                        head_bytes: bytes,
                        rest,
                        decoder,
                    });
                }
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(not_http("more than 16 interim responses"));
                }
                (bytes, from) = (rest, 0);
            }
        }
    }

    /// The next part of the body; `None` is its end.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<u8>, CheckError>> {
        loop {
            let decoder = self.decoder.as_mut()?;
            match decoder.step(&self.rest) {
                Ok(BodyStep::Data(count)) => {
                    let rest = self.rest.split_off(count);
                    return Some(Ok(std::mem::replace(&mut self.rest, rest)));
                }
                Ok(BodyStep::Skip(count)) => drop(self.rest.drain(..count)),
                Ok(BodyStep::End) => return None,
                Ok(BodyStep::More) => match read(&mut self.stream, &mut self.rest).await {
                    Ok(()) => {}
                    Err(CheckError::Closed) if matches!(decoder, BodyDecoder::UntilClose) => {
                        return None;
                    }
                    Err(error) => return Some(Err(error)),
                },
                Err(malformed) => return Some(Err(not_http(&malformed.to_string()))),
            }
        }
    }

    /// Judges the framing of a body that nothing is expected of, as far as it comes soon.
    pub(super) async fn judge_body(&mut self) -> Result<(), CheckError> {
        let mut left = match self.head.framing {
            // No framing at all.
            ResponseFraming::None | ResponseFraming::UntilClose => 0,
            ResponseFraming::Length(_) | ResponseFraming::Chunked => MAX_JUDGED,
        };
        let judged = async {
            while left > 0
                && let Some(part) = self.next().await
            {
                left = left.saturating_sub(part?.len());
            }
            Ok(())
        };
        timeout(BODY_WAIT, judged).await.unwrap_or(Ok(()))
    }

    /// The value of a field of the head.
    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.fields.values(name, &self.head_bytes).next()
    }

    /// The trailer section of a body that was read to its end: lines, empty where there is none.
    pub(super) fn trailers(&self) -> &[u8] {
        self.decoder.as_ref().map_or(&[], BodyDecoder::trailers)
    }
}

/// Reads what is there, at least one byte.
async fn read(stream: &mut Stream, bytes: &mut Vec<u8>) -> Result<(), CheckError> {
    bytes.reserve(READ_BYTES);
    match stream.read_buf(bytes).await {
        Ok(0) => Err(CheckError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(broken(&error)),
    }
}

fn not_http(detail: &str) -> CheckError {
    CheckError::Failed(format!("answer is not valid HTTP: {detail}"))
}

/// An error of the connection.
fn broken(error: &io::Error) -> CheckError {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match (StreamError::of(error), error.kind()) {
        (Some(StreamError::Lost), _) => CheckError::Cut,
        (Some(ended), _) => CheckError::Failed(ended.to_string()),
        _ if local_error::is_local(error) => {
            local_error::log(error);
            CheckError::Local(error.to_string())
        }
        (None, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) => CheckError::Cut,
        (None, _) => CheckError::Failed(error.to_string()),
    }
}
