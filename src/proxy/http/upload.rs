//! The request as it goes to a backend: its head, its framing and its body.

use super::{
    buffers::ExchangeBuffers,
    client_address::ClientAddress,
    connection::ClientConnection,
    exchange::{Exchange, ExchangeContext, ForwardSettings},
    forward::{self, NextHop, RequestChanges},
    origin::RequestOrigin,
    pump::Pump,
    read,
};
use crate::{
    config::model::BackendProtocol,
    http::message::{BodyFraming, RequestHead},
    http1::{
        body::{BodyDecoder, BodyStep},
        encode::TextHead,
    },
    pool::Pool,
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
    let tls = client.stream.negotiated_tls();
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
        is_h2: client.stream.h2_request().is_some(),
        subject,
    }
}

impl Exchange<'_> {
    /// Offset behind the body in the request's buffer, if the body was read whole with the head.
    pub(super) fn end_of_body(&self) -> Option<usize> {
        let head = self.head();
        let mut decoder = self.decoder();
        let mut at = head.len;
        loop {
            match decoder.step(head.bytes.get(at..)?).ok()? {
                BodyStep::Data(count) | BodyStep::Skip(count) => at += count,
                BodyStep::More => return None,
                BodyStep::End => return Some(at),
            }
        }
    }

    fn decoder(&self) -> BodyDecoder {
        match self.head().framing {
            BodyFraming::None | BodyFraming::UntilClose => BodyDecoder::Length(0),
            BodyFraming::Length(length) => BodyDecoder::Length(length),
            BodyFraming::Streamed(_) => BodyDecoder::chunked(read::limits(self.context.listener)),
        }
    }

    /// The request as it goes to a backend of `pool`. Takes buffers that `take_back` gives back.
    pub(super) fn upload(&mut self, pool: &Pool, settings: &ForwardSettings<'_>) -> Pump {
        self.encode_request(pool, settings);
        let buffers = &mut *self.buffers;
        let mut out = std::mem::take(&mut buffers.upload_out);
        out.clear();
        out.extend_from_slice(&buffers.request_out);
        let mut bytes = std::mem::take(&mut buffers.upload_bytes);
        bytes.clear();
        let head = &buffers.request;
        if head.framing == BodyFraming::None {
            return Pump::new(out, bytes, 0, None, false);
        }
        let body = head.bytes.get(head.len..);
        debug_assert!(body.is_some(), "the head is a part of its buffer");
        bytes.extend_from_slice(body.unwrap_or_default());
        let (is_chunked, length) = self.upload_framing(pool);
        let mut upload = Pump::new(out, bytes, 0, Some(self.decoder()), is_chunked);
        upload.set_framing(is_chunked, length);
        if matches!(self.head().framing, BodyFraming::Streamed(_)) {
            let origin = origin(self.context, self.client, self.address, self.head());
            let forwarded = &self.context.snapshot.config.forwarded;
            upload.forbid_trailers(origin.own_names(forwarded));
        }
        let limit = self.context.listener.config.limits.request_body;
        upload.limit_body(limit.unwrap_or(u64::MAX));
        if settings.retries.is_some() {
            upload.keep_for_replay();
        } else {
            upload.allow_splice();
        }
        upload
    }

    /// Encodes the head of the request for a backend of `pool`.
    fn encode_request(&mut self, pool: &Pool, settings: &ForwardSettings<'_>) {
        let ExchangeBuffers {
            request,
            request_id,
            request_out,
            ..
        } = &mut *self.buffers;
        let origin = origin(self.context, self.client, self.address, request);
        let rewritten_host = settings.route.map(|route| route.rewrite.host.as_deref());
        let changes = RequestChanges {
            target: settings.target.as_deref(),
            host: rewritten_host.flatten(),
            edits: settings.route.map(|route| &route.request_headers),
            websocket_key: None,
        };
        request_out.clear();
        forward::request_head(
            &mut TextHead::new(request_out),
            request,
            &self.context.snapshot.config.forwarded,
            origin,
            request_id,
            changes,
            next_hop(pool),
        );
    }

    /// Encodes the head again for `pool`, if its backends take another protocol than those of
    /// `before`.
    pub(super) fn reencode_request(
        &mut self,
        before: &Pool,
        pool: &Pool,
        settings: &ForwardSettings<'_>,
    ) {
        if next_hop(before) != next_hop(pool) {
            self.encode_request(pool, settings);
        }
    }

    /// The framing of the body for a backend of `pool`: true if it is sent in chunks, else the
    /// length at which a chunked one ends. In HTTP/1 a message has a length or trailers.
    pub(super) fn upload_framing(&self, pool: &Pool) -> (bool, Option<u64>) {
        let head = self.head();
        let is_h2 = next_hop(pool).is_h2();
        match head.framing {
            BodyFraming::Streamed(length) if is_h2 || length.is_none() => (true, None),
            BodyFraming::Streamed(length) => (false, length),
            _ => (false, None),
        }
    }

    /// Gives the buffers of the upload back, and notes the start of the next request; true if
    /// this one was read to its end.
    pub(super) fn take_back(&mut self, upload: Pump) -> bool {
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
