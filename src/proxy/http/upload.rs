//! The request as it goes to a backend: its head, its framing and its body.

use super::{
    attempt::Attempt,
    await_response::ResponseError,
    backend_side::BackendSide,
    client_address::ClientAddress,
    connection::ClientConnection,
    exchange::{Exchange, ExchangeContext, ForwardSettings},
    forward::{self, NextHop, RequestChanges},
    origin::RequestOrigin,
    read,
    relay::{BodyEncoding, BodyRelay},
};
use crate::{
    config::model::BackendProtocol,
    http::{
        head_writer::HeadWriter,
        message::{BodyFraming, HttpVersion, RequestHead},
        websocket,
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        encode::TextHead,
    },
    http2::{
        block_head::{BlockHead, is_expressible},
        response::ResponseExpectation,
    },
    pool::Pool,
    reason::Reason,
};

/// The protocol between us and the backends of `pool`.
fn next_hop(pool: &Pool) -> NextHop {
    match pool.config.protocol {
        BackendProtocol::H2 => NextHop::H2 { is_secure: true },
        BackendProtocol::H2c => NextHop::H2 { is_secure: false },
        BackendProtocol::Http1 if pool.config.keepalive.idle_per_backend == 0 => NextHop::Close,
        BackendProtocol::Http1 => NextHop::KeepAlive,
    }
}

/// The origin of a request on the connection of `client`, for the backend.
fn origin<'o>(
    context: ExchangeContext<'o>,
    client: &'o ClientConnection,
    address: ClientAddress,
    head: &RequestHead,
) -> RequestOrigin<'o> {
    let tls = client.side.negotiated_tls();
    let subject = context.listener.config.tls.as_ref().and_then(|rules| {
        let own = tls.and_then(|tls| tls.client_subject.as_deref());
        Some((rules.client_subject.as_deref()?, own.unwrap_or_default()))
    });
    let trusted = &context.snapshot.config.trusted_proxies;
    let is_hostless = head.host.is_empty();
    let ends = is_hostless.then(|| client.ends()).flatten();
    RequestOrigin {
        peer: client.peer,
        trusted: address.trusted,
        client: address.client,
        is_unlisted: address.is_unlisted,
        client_header: trusted.client_header.as_deref(),
        port: client.local_port(),
        local: ends.map(|ends| ends.destination),
        is_secure: tls.is_some(),
        subject,
    }
}

/// The encoding of the body of `head` for the next hop, and the length at which it ends for an
/// HTTP/1 backend, which the client has declared though it has an end mark of its own. In HTTP/1 a
/// message has a length or trailers.
fn body_encoding(head: &RequestHead, hop: NextHop) -> (BodyEncoding, Option<u64>) {
    match head.framing {
        _ if hop.is_h2() => (BodyEncoding::Frames, None),
        BodyFraming::Streamed(None) => (BodyEncoding::Chunked, None),
        BodyFraming::Streamed(length) => (BodyEncoding::Plain, length),
        _ => (BodyEncoding::Plain, None),
    }
}

impl Exchange<'_> {
    /// Offset behind the body in the request's buffer, if the body was read whole with the head.
    pub(super) fn end_of_body(&self) -> Option<usize> {
        let head = self.head();
        if head.framing == BodyFraming::None {
            return Some(head.len);
        }
        let mut decoder = self.decoder()?;
        let mut at = head.len;
        loop {
            match decoder.step(head.bytes.get(at..)?).ok()? {
                BodyStep::Data(count) | BodyStep::Skip(count) => at += count,
                BodyStep::More => return None,
                BodyStep::End => return Some(at),
            }
        }
    }

    /// The decoder of the body in the bytes of an HTTP/1 client; HTTP/2 has frames.
    fn decoder(&self) -> Option<BodyDecoder> {
        let head = self.head();
        if head.version == HttpVersion::Http2 {
            return None;
        }
        Some(match head.framing {
            BodyFraming::None | BodyFraming::UntilClose => BodyDecoder::Length(0),
            BodyFraming::Length(length) => BodyDecoder::Length(length),
            BodyFraming::Streamed(_) => BodyDecoder::chunked(read::limits(self.context.listener)),
        })
    }

    /// The body of the request. Takes buffers that `take_back` gives back.
    pub(super) fn upload(&mut self, settings: &ForwardSettings<'_>) -> BodyRelay {
        let buffers = &mut *self.buffers;
        let out = std::mem::take(&mut buffers.upload_out);
        let mut bytes = std::mem::take(&mut buffers.upload_bytes);
        bytes.clear();
        let head = &buffers.request;
        if head.framing == BodyFraming::None {
            return BodyRelay::without_body(out, bytes);
        }
        let body = head.bytes.get(head.len..);
        debug_assert!(body.is_some(), "the head is a part of its buffer");
        bytes.extend_from_slice(body.unwrap_or_default());
        let mut upload = BodyRelay::new(out, bytes, 0, self.decoder());
        if matches!(self.head().framing, BodyFraming::Streamed(_)) {
            let origin = origin(self.context, self.client, self.address, self.head());
            let forwarded = &self.context.snapshot.config.forwarded;
            upload.forbid_trailers(origin.own_names(forwarded));
        }
        let limit = self.context.listener.config.limits.request_body;
        upload.limit_body(limit.unwrap_or(u64::MAX));
        if settings.retries.is_some() {
            upload.keep_for_replay();
        }
        upload.allow_splice();
        upload
    }

    /// Writes the head for the backend of `attempt`, and begins the body from its start: to an
    /// HTTP/1 backend both go out together.
    ///
    /// # Errors
    /// HTTP/2 cannot express the request, or the stream cannot be opened.
    pub(super) fn send_head(
        &mut self,
        attempt: Attempt<'_>,
        backend: &mut BackendSide,
        upload: &mut BodyRelay,
    ) -> Result<(), ResponseError> {
        let head = self.head();
        let hop = next_hop(attempt.pool);
        let (encoding, length) = body_encoding(head, hop);
        let has_body = head.framing != BodyFraming::None;
        let expected = ResponseExpectation {
            is_head: head.text(head.method) == b"HEAD",
            is_websocket: head.is_websocket(),
        };
        let settings = attempt.settings;
        let target = settings.target.as_deref();
        let is_key_needed = head.version == HttpVersion::Http2 && expected.is_websocket;
        match backend {
            BackendSide::H1(_) => {
                self.websocket_key = is_key_needed.then(|| {
                    let random = &mut self.context.worker.random.borrow_mut();
                    let nonce = u128::from(random.bits()) << 64 | u128::from(random.bits());
                    websocket::key(nonce.to_be_bytes())
                });
                self.write_head(
                    &mut TextHead::new(upload.rewind(encoding, length)),
                    settings,
                    hop,
                );
            }
            BackendSide::H2(outgoing) => {
                if !is_expressible(target.unwrap_or_else(|| head.text(head.target))) {
                    return Err(ResponseError::Client(Reason::RequestError));
                }
                // An earlier attempt may have been over HTTP/1.
                self.websocket_key = None;
                upload.rewind(encoding, length);
                let write = |block: &mut BlockHead<'_>| self.write_head(block, settings, hop);
                // A tunnel has no body, and does not end either.
                let ends = !has_body && !expected.is_websocket;
                outgoing.send_head(expected, ends, write).map_err(|ended| {
                    ResponseError::Backend(Reason::ConnectionTerminated, ended.to_string())
                })?;
            }
        }
        upload.replay(has_body);
        Ok(())
    }

    /// Writes the head of the request.
    fn write_head(&self, out: &mut impl HeadWriter, settings: &ForwardSettings<'_>, hop: NextHop) {
        let head = self.head();
        let rewritten_host = settings.route.map(|route| route.rewrite.host.as_deref());
        let changes = RequestChanges {
            target: settings.target.as_deref(),
            host: rewritten_host.flatten(),
            edits: settings.route.map(|route| &route.request_headers),
            websocket_key: self.websocket_key.as_deref(),
        };
        forward::request_head(
            out,
            head,
            &self.context.snapshot.config.forwarded,
            origin(self.context, self.client, self.address, head),
            &self.buffers.request_id,
            changes,
            hop,
        );
    }

    /// Gives the buffers of the upload back, and notes the start of the next request; true if
    /// this one was read to its end.
    pub(super) fn take_back(&mut self, upload: BodyRelay) -> bool {
        // Tunnel bytes are counted in `tunnel`.
        self.record.bytes_in += upload.body();
        let read_all = upload.has_read_all() || self.next_request_at.is_some();
        if upload.moved().0 > 0 {
            self.client.pipelined_requests = 0;
        }
        let is_in_upload = self.head().framing != BodyFraming::None && upload.has_read_all();
        let (out, mut bytes, taken) = upload.into_buffers();
        if is_in_upload {
            // The next request begins where the upload stopped reading.
            self.next_request_at = None;
            bytes.drain(..taken.min(bytes.len()));
        } else {
            bytes.clear();
        }
        self.buffers.upload_out = out;
        self.buffers.upload_bytes = bytes;
        read_all
    }
}
