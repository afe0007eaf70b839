//! One request of a check, on an HTTP/1 connection of its own or on an HTTP/2 stream. The response
//! is read by the codec that reads those of traffic, so that a message which fails requests fails
//! checks too.

use std::{future::poll_fn, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{error::CheckError, phases::PhaseClock};
use crate::{
    h2::{StreamError, backend::OutgoingStream},
    http::{
        head_writer::{HeadWriter, RequestLine},
        message::{BodyFraming, ResponseHead, Trailers},
        rules::{MAX_HEAD_BYTES, RESPONSE_LIMITS},
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        encode::TextHead,
        head_end, response,
    },
    http2::{block_head::BlockHead, response::ResponseExpectation},
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

/// A request of a check.
pub(super) struct CheckRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// `Host`, or `:authority`.
    pub authority: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
    /// Framing of `content`.
    pub framing: BodyFraming,
    pub content: &'a [u8],
    pub phases: &'a PhaseClock,
}

impl CheckRequest<'_> {
    fn write(&self, out: &mut impl HeadWriter, is_secure: bool) {
        out.request_line(RequestLine {
            method: self.method.as_bytes(),
            is_secure,
            authority: self.authority.as_bytes(),
            target: self.path.as_bytes(),
            is_websocket: false,
        });
        out.http1_field(b"host", self.authority.as_bytes());
        for (name, value) in self.fields {
            out.field(name.as_bytes(), value.as_bytes());
        }
        out.framing(self.framing);
        out.http1_field(b"connection", b"close");
        out.end();
    }
}

/// The side of the backend in a check.
pub(super) enum CheckStream {
    /// A connection in the clear or with TLS.
    H1(Stream),
    /// The only stream of a connection.
    H2(OutgoingStream),
}

impl CheckStream {
    /// Sends `request`. Over HTTP/1 the read reports a failed write: the response may be there all
    /// the same.
    async fn send(&mut self, request: &CheckRequest<'_>) -> Result<(), CheckError> {
        match self {
            Self::H1(stream) => {
                let mut text = Vec::new();
                request.write(&mut TextHead::new(&mut text), stream.tls().is_some());
                text.extend_from_slice(request.content);
                let _ = stream.write_all(&text).await;
                Ok(())
            }
            Self::H2(outgoing) => {
                let is_secure = outgoing.connection().is_secure();
                let expected = ResponseExpectation {
                    is_head: request.method == "HEAD",
                    is_websocket: false,
                };
                let ends = request.content.is_empty();
                let write = |block: &mut BlockHead<'_>| request.write(block, is_secure);
                outgoing
                    .send_head(expected, ends, write)
                    .map_err(CheckError::from_stream)?;
                send_content(outgoing, request.content).await;
                Ok(())
            }
        }
    }

    /// Reads the head of the next response.
    async fn read_head(
        &mut self,
        head: &mut ResponseHead,
        request: &CheckRequest<'_>,
    ) -> Result<(), CheckError> {
        match self {
            Self::H1(stream) => {
                let mut from = 0;
                loop {
                    if may_parse(&head.bytes, from) && parse(head, request.method)? {
                        return Ok(());
                    }
                    from = head.bytes.len();
                    read(stream, &mut head.bytes).await?;
                    request.phases.received();
                }
            }
            Self::H2(outgoing) => {
                let read = poll_fn(|cx| outgoing.poll_head(head, cx));
                let read = read.await.map_err(CheckError::from_stream);
                read.inspect(|()| request.phases.received())
            }
        }
    }
}

/// Sends all of `content`. The read reports a stream that was closed meanwhile.
async fn send_content(outgoing: &OutgoingStream, mut content: &[u8]) {
    while !content.is_empty() {
        match outgoing.stream().send_content(content, true) {
            Ok(sent) => content = content.get(sent..).unwrap_or_default(),
            Err(_) => return,
        }
        if !content.is_empty()
            && poll_fn(|cx| outgoing.stream().poll_content_ready(cx))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// A response whose head was received.
pub(super) struct CheckResponse {
    stream: CheckStream,
    /// The head.
    pub(super) head: ResponseHead,
    /// Received and not decoded yet.
    undecoded: Vec<u8>,
    /// Finds the body of an HTTP/1 response; `None` if there is none, or over HTTP/2.
    decoder: Option<BodyDecoder>,
    trailers: Trailers,
}

impl CheckResponse {
    /// Sends `request` and reads the head of the final response to it.
    pub(super) async fn fetch(
        mut stream: CheckStream,
        request: &CheckRequest<'_>,
    ) -> Result<Self, CheckError> {
        stream.send(request).await?;
        let mut head = ResponseHead::default();
        let mut interim = 0;
        loop {
            stream.read_head(&mut head, request).await?;
            let undecoded = head.bytes.split_off(head.len);
            if !head.is_interim() {
                return Ok(Self {
                    decoder: decoder(&stream, head.framing),
                    stream,
                    head,
                    undecoded,
                    trailers: Trailers::new(),
                });
            }
            interim += 1;
            if interim > MAX_INTERIM_RESPONSES {
                let cause = "more than 16 interim responses";
                return Err(CheckError::InvalidHttp(cause.to_owned()));
            }
            head.bytes = undecoded;
        }
    }

    /// The next part of the body; `None` is its end.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<u8>, CheckError>> {
        if let CheckStream::H2(outgoing) = &self.stream {
            let ready = poll_fn(|cx| outgoing.stream().poll_content(cx)).await;
            return self.take_content(ready);
        }
        loop {
            let decoder = self.decoder.as_mut()?;
            match decoder.step(&self.undecoded) {
                Ok(BodyStep::Data(count)) => {
                    let rest = self.undecoded.split_off(count);
                    return Some(Ok(std::mem::replace(&mut self.undecoded, rest)));
                }
                Ok(BodyStep::Skip(count)) => drop(self.undecoded.drain(..count)),
                Ok(BodyStep::End) => {
                    self.trailers = decoder.take_trailers();
                    return None;
                }
                Ok(BodyStep::More) => match self.read_more().await {
                    Ok(()) => {}
                    Err(CheckError::Closed)
                        if matches!(self.decoder, Some(BodyDecoder::UntilClose)) =>
                    {
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

    async fn read_more(&mut self) -> Result<(), CheckError> {
        match &mut self.stream {
            CheckStream::H1(stream) => read(stream, &mut self.undecoded).await,
            CheckStream::H2(_) => Err(CheckError::Closed),
        }
    }

    /// Takes the content of a stream that is ready.
    fn take_content(
        &mut self,
        ready: Result<bool, StreamError>,
    ) -> Option<Result<Vec<u8>, CheckError>> {
        let CheckStream::H2(outgoing) = &self.stream else {
            return None;
        };
        match ready {
            Ok(true) => {
                let mut part = Vec::new();
                outgoing.stream().read_content(&mut part, READ_BYTES);
                Some(Ok(part))
            }
            Ok(false) => {
                self.trailers = outgoing.stream().take_trailers();
                None
            }
            Err(ended) => Some(Err(CheckError::from_stream(ended))),
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

    /// The trailers behind a body that was read to its end.
    pub(super) const fn trailers(&self) -> &Trailers {
        &self.trailers
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

/// The decoder for the body of an HTTP/1 response; `None` if there is none.
fn decoder(stream: &CheckStream, framing: BodyFraming) -> Option<BodyDecoder> {
    match (stream, framing) {
        (CheckStream::H2(_), _) | (_, BodyFraming::None) => None,
        (_, BodyFraming::Length(length)) => Some(BodyDecoder::Length(length)),
        (_, BodyFraming::Streamed(_)) => Some(BodyDecoder::chunked(RESPONSE_LIMITS)),
        (_, BodyFraming::UntilClose) => Some(BodyDecoder::UntilClose),
    }
}

/// Reads at least one byte.
async fn read(stream: &mut Stream, bytes: &mut Vec<u8>) -> Result<(), CheckError> {
    bytes.reserve(READ_BYTES);
    match stream.read_buf(bytes).await {
        Ok(0) => Err(CheckError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(CheckError::from_io(error)),
    }
}
