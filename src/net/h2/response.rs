//! The response of a client's stream: the HTTP/1.1 head that the engine writes becomes that of the stream.

use std::{
    io,
    mem::MaybeUninit,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::server::SendResponse;
use hyper::http::{HeaderMap, Response, StatusCode};

use super::writer::{self, MAX_FIELDS, Writer, gone, invalid};
use crate::http1::body::Decoder;

/// The response of one stream.
#[derive(Debug)]
pub(super) struct Sending {
    respond: SendResponse<Bytes>,
    /// What is there of a head.
    head: Vec<u8>,
    /// After the final head.
    body: Option<Writer>,
    is_head: bool,
    /// A switch to another protocol was asked for.
    may_switch: bool,
}

impl Sending {
    /// The response to a request that was HEAD or not, and asked for another protocol or not.
    pub(super) const fn new(respond: SendResponse<Bytes>, is_head: bool, may_switch: bool) -> Self {
        Self {
            respond,
            head: Vec::new(),
            body: None,
            is_head,
            may_switch,
        }
    }

    /// Takes what can be sent or buffered; `WouldBlock` when that is nothing.
    pub(super) fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while used < input.len() {
            let rest = input.get(used..).unwrap_or_default();
            used += match &mut self.body {
                None => {
                    let (whole, count) = writer::collect(&mut self.head, rest)?;
                    if let Some(head) = whole {
                        self.send_head(&head)?;
                    }
                    count
                }
                Some(body) => match body.write(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && used > 0 => break,
                    count => count?,
                },
            };
        }
        Ok(used)
    }

    fn send_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); MAX_FIELDS];
        let mut head = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut head, bytes, &mut room);
        let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
        let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, status) else {
            return Err(invalid("no response head"));
        };
        let (mut fields, decoder) = writer::fields(head.headers)?;
        writer::spare_table(&mut fields);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.begin_raw(fields);
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        if status.is_informational() {
            return self.respond.send_informational(response).or_else(gone);
        }
        let decoder = if self.is_head || matches!(status.as_u16(), 204 | 304) {
            Decoder::Length(0)
        } else {
            decoder.unwrap_or(Decoder::UntilClose)
        };
        let ends = decoder.is_done();
        let stream = self.respond.send_response(response, ends).or_else(gone)?;
        self.body = Some(if ends {
            Writer::done(stream)
        } else {
            Writer::body(stream, decoder)
        });
        Ok(())
    }

    /// RFC 8441 section 5: the switch of HTTP/1 is a plain 200 here, and its handshake ends with us.
    fn begin_raw(&mut self, mut fields: HeaderMap) -> io::Result<()> {
        if !self.may_switch {
            return Err(invalid("a switch that was not asked for"));
        }
        fields.remove("sec-websocket-accept");
        let mut response = Response::new(());
        *response.headers_mut() = fields;
        let stream = self.respond.send_response(response, false).or_else(gone)?;
        self.body = Some(Writer::raw(stream));
        Ok(())
    }

    /// Ready when a write takes something, or fails.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.body {
            Some(body) => body.poll_room(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the stream is no more, whoever ended it.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.body {
            Some(body) => body.poll_gone(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }

    /// Ends a tunnel. A response ends by its own framing, or not at all.
    pub(super) fn finish(&mut self) {
        if let Some(body) = &mut self.body {
            body.finish();
        }
    }

    /// Makes sure that what is not whole does not look whole.
    pub(super) fn cut(&mut self) {
        match &mut self.body {
            Some(body) => body.cut(h2::Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
}
