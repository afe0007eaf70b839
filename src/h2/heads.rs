//! Field blocks of a peer: request heads, response heads and trailers (RFC 9113 sections 6.2, 6.10
//! and 8.1).

use std::cell::RefCell;

use super::{
    StreamError,
    client::IncomingRequest,
    flood_guard::{INTERIM_RESPONSE_COST, LATE_HEAD_COST, RAPID_RESET_AGE},
    input::{ProtocolError, StreamState, depends_on_itself},
    spare,
    state::{ConnectionState, GoawayState, PartialBlock, PeerRole},
};
use crate::{
    base::clock,
    http::{
        fields::Span,
        message::{BodyFraming, Trailers},
        rules::{HeadFault, MAX_HEAD_BYTES, RESPONSE_LIMITS},
    },
    http2::{
        frame::{ErrorCode, Frame, flag},
        hpack::{FieldList, HpackError, SizeLimits},
        request, response,
        trailers::{self, TrailersError},
    },
};

/// CONTINUATION frames beyond those that the block's size needs. Endless ones are the attack
/// CVE-2024-27316: they hold memory and CPU, and never form a request that is logged.
const SPARE_CONTINUATIONS: usize = 5;
/// Interim responses of a stream that are free: as many are passed on.
const FREE_INTERIM_RESPONSES: u32 = 16;
/// Block bytes per CONTINUATION that count as needed: peers may send smaller frames than the 16 KiB
/// that we allow.
const BYTES_PER_CONTINUATION: usize = 256;
/// Tokens charged for a CONTINUATION beyond the needed ones.
const SPARE_CONTINUATION_COST: i64 = 20;
/// Field bytes that are always decoded without closing the connection, even with a small
/// `max_header_size`.
const MIN_KEPT_BYTES: usize = 64 << 10;
thread_local! {
    /// Decoded fields; one list per thread, as it is needed only while a block is handled.
    static FIELD_LIST: RefCell<FieldList> = RefCell::default();
}

impl ConnectionState {
    /// Handles HEADERS, RFC 9113 section 6.2.
    pub(super) fn on_headers(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ProtocolError> {
        let (mut block, mut padding) = (payload, 0);
        let mut is_self_dependent = false;
        if frame.has(flag::PADDED) {
            let (first, rest) = block.split_first().ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
            (block, padding) = (rest, usize::from(*first));
        }
        if frame.has(flag::PRIORITY) {
            is_self_dependent = depends_on_itself(frame.stream, block);
            block = block.get(5..).ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
        }
        // Padding longer than the block is an error of the connection: its fields are unknown.
        let length = block.len().checked_sub(padding);
        let block = length
            .and_then(|length| block.get(..length))
            .ok_or(ErrorCode::PROTOCOL_ERROR)?;
        let ends = frame.has(flag::END_STREAM);
        if frame.has(flag::END_HEADERS) {
            return self.on_field_block(frame.stream, ends, is_self_dependent, block);
        }
        self.partial_block = Some(Box::new(PartialBlock {
            stream: frame.stream,
            ends,
            is_self_dependent,
            bytes: block.to_vec(),
            continuations: 0,
        }));
        Ok(())
    }

    /// Handles CONTINUATION, RFC 9113 section 6.10.
    pub(super) fn on_continuation(
        &mut self,
        frame: Frame,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        // Compression seldom saves more than half.
        let most = self.field_limits().decoded / 2;
        let Some(mut block) = self.partial_block.take() else {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        };
        block.continuations += 1;
        block.bytes.extend_from_slice(payload);
        let needed = block.bytes.len() / BYTES_PER_CONTINUATION;
        let spare = block.continuations.saturating_sub(needed);
        if spare > 0 {
            self.flood_guard.charge(SPARE_CONTINUATION_COST);
        }
        if spare > SPARE_CONTINUATIONS || block.bytes.len() > most {
            return Err(ErrorCode::ENHANCE_YOUR_CALM.into());
        }
        if frame.has(flag::END_HEADERS) {
            let PartialBlock { stream, ends, .. } = *block;
            return self.on_field_block(stream, ends, block.is_self_dependent, &block.bytes);
        }
        self.partial_block = Some(block);
        Ok(())
    }

    /// Size limits for one block. Twice the configured size is kept, so that a head that is
    /// slightly too large gets a response; eight times that, at least 512 KiB, is decoded and
    /// dropped, as the HPACK table must follow the peer's. Beyond it the connection is closed: it
    /// bounds what one small block of table references can cost ("HPACK bomb").
    fn field_limits(&self) -> SizeLimits {
        let kept = 2 * match &self.role {
            PeerRole::Client(client) => client.limits.bytes,
            PeerRole::Backend(_) => MAX_HEAD_BYTES,
        };
        SizeLimits {
            kept,
            decoded: 8 * kept.max(MIN_KEPT_BYTES),
        }
    }

    /// Handles a complete field block.
    fn on_field_block(
        &mut self,
        id: u32,
        ends: bool,
        is_self_dependent: bool,
        block: &[u8],
    ) -> Result<(), ProtocolError> {
        let limits = self.field_limits();
        FIELD_LIST.with_borrow_mut(|fields| {
            self.decoder
                .decode(block, limits, fields)
                .map_err(|refused| match refused {
                    HpackError::Malformed => ErrorCode::COMPRESSION_ERROR,
                    HpackError::TooLarge => ErrorCode::ENHANCE_YOUR_CALM,
                })?;
            if is_self_dependent {
                return self.on_self_dependent_headers(id);
            }
            match self.role {
                PeerRole::Client(_) => self.on_request_headers(id, ends, fields),
                PeerRole::Backend(_) => self.on_response_headers(id, ends, fields),
            }
        })
    }

    /// Handles a block whose HEADERS frame makes its stream depend on itself, RFC 7540 section
    /// 5.3.1.
    fn on_self_dependent_headers(&mut self, id: u32) -> Result<(), ProtocolError> {
        self.flood_guard.charge(LATE_HEAD_COST);
        if self.is_new_request(id) {
            self.last_stream_id = id;
        } else {
            match self.stream_state(id)? {
                StreamState::Open => self.check_reset(id)?,
                StreamState::Closed => return self.check_closed_headers(id),
            }
        }
        Err(ProtocolError::Stream(id, ErrorCode::PROTOCOL_ERROR))
    }

    /// Handles the trailers of a message.
    fn on_trailers(
        &mut self,
        id: u32,
        ends: bool,
        fields: &FieldList,
    ) -> Result<(), ProtocolError> {
        let Some(entry) = self.open_entry(id) else {
            self.flood_guard.charge(LATE_HEAD_COST);
            return self.check_reset(id);
        };
        if entry.end_received {
            return Err(ProtocolError::Stream(id, ErrorCode::STREAM_CLOSED));
        }
        if !ends {
            self.malformed(id, "trailers that are not the end");
            return Ok(());
        }
        let limits = match &self.role {
            PeerRole::Client(client) => client.limits,
            PeerRole::Backend(_) => RESPONSE_LIMITS,
        };
        match trailers::read(fields, limits) {
            Ok(trailers) => self.on_end_stream(id, trailers),
            Err(TrailersError::TooLarge) => self.too_large(id, "its trailers"),
            Err(TrailersError::Malformed(what)) => self.malformed(id, what),
        }
        Ok(())
    }

    /// True if a block on stream `id` is the head of a client's next request, RFC 9113 section
    /// 5.1.1.
    fn is_new_request(&self, id: u32) -> bool {
        let is_client = matches!(self.role, PeerRole::Client(_));
        is_client && id > self.last_stream_id && !id.is_multiple_of(2)
    }

    /// Handles a block from a client: a request or trailers.
    fn on_request_headers(
        &mut self,
        id: u32,
        ends: bool,
        fields: &FieldList,
    ) -> Result<(), ProtocolError> {
        if !self.is_new_request(id) {
            return match self.stream_state(id)? {
                StreamState::Open => self.on_trailers(id, ends, fields),
                StreamState::Closed => self.check_closed_headers(id),
            };
        }
        self.last_stream_id = id;
        let PeerRole::Client(client) = &self.role else {
            return Ok(());
        };
        let is_closing = client.goaway == GoawayState::Final;
        if is_closing || self.is_full(client.max_streams) {
            // The client may not yet know our GOAWAY, or our SETTINGS (RFC 9113 section 6.5.3).
            let is_expected = is_closing || !self.is_acknowledged;
            self.refuse_request(id, is_expected);
        } else {
            self.begin_request(id, ends, fields);
        }
        Ok(())
    }

    /// True if a client uses as many streams as it may. A stream that both sides have ended no
    /// longer counts (RFC 9113 section 5.1.2), even while its exchange still holds it; those are
    /// bounded too.
    fn is_full(&self, max_streams: usize) -> bool {
        let in_use = self.streams.len();
        in_use >= max_streams && {
            let open = self.streams.values().filter(|entry| entry.is_open());
            open.count() >= max_streams || in_use >= 2 * max_streams
        }
    }

    /// Opens the stream of a request. A malformed request gets one as well: its exchange sends the
    /// response and is logged.
    fn begin_request(&mut self, id: u32, ends: bool, fields: &FieldList) {
        let mut entry = self.new_entry();
        let PeerRole::Client(client) = &mut self.role else {
            debug_assert!(false, "only clients open streams");
            return;
        };
        let mut head = spare::take_request();
        let refusal = request::read(fields, ends, client.limits, &mut head).err();
        // The refusal has no body either. Most faults leave nothing of the head.
        let is_nameless = refusal.is_some() && head.text(head.method).is_empty();
        if is_nameless && fields.iter().any(|field| field == (b":method", b"HEAD")) {
            let start = head.bytes.len();
            head.bytes.extend_from_slice(b"HEAD");
            head.method = Span::new(start, head.bytes.len());
        }
        let now = *self.read_at.get_or_insert_with(clock::now);
        entry.opened_at = Some(now);
        entry.rapid_until = Some(now + RAPID_RESET_AGE);
        entry.end_received = ends;
        // Content behind a head that is understood is read, and waits for its window.
        let is_malformed = refusal.is_some_and(|it| it.fault == HeadFault::Malformed);
        let framing = if is_malformed {
            BodyFraming::None
        } else {
            head.framing
        };
        let is_tunnel = refusal.is_none() && head.upgrade.is_some();
        entry.recv_buffer.begin_content(framing, is_tunnel);
        if ends {
            entry.recv_buffer.finish(Trailers::new());
        }
        self.streams.insert(id, entry);
        client
            .requests
            .push_back(IncomingRequest { id, head, refusal });
        self.flood_guard.credit_request();
    }

    /// Handles a block from a backend: a response head or trailers.
    fn on_response_headers(
        &mut self,
        id: u32,
        ends: bool,
        fields: &FieldList,
    ) -> Result<(), ProtocolError> {
        if let StreamState::Closed = self.stream_state(id)? {
            return self.check_closed_headers(id);
        }
        let Some(entry) = self.open_entry(id) else {
            self.flood_guard.charge(LATE_HEAD_COST);
            return self.check_reset(id);
        };
        if entry.recv_buffer.has_head() {
            return self.on_trailers(id, ends, fields);
        }
        if !fields.is_whole() {
            self.too_large(id, "its head");
            return Ok(());
        }
        let mut head = spare::take_response();
        if let Err(refused) = response::read(fields, ends, entry.expected, &mut head) {
            match refused.fault {
                HeadFault::TooLarge => self.too_large(id, "its head"),
                _ => self.malformed(id, refused.detail),
            }
            return Ok(());
        }
        let is_interim = head.is_interim();
        if !entry.recv_buffer.push_head(head) {
            self.too_large(id, "its interim responses");
            return Ok(());
        }
        if is_interim {
            entry.interim_responses += 1;
        } else if ends {
            entry.end_received = true;
            entry.recv_buffer.finish(Trailers::new());
        }
        entry.wake_reader();
        if entry.interim_responses > FREE_INTERIM_RESPONSES {
            self.flood_guard.charge(INTERIM_RESPONSE_COST);
        }
        if let PeerRole::Backend(backend) = &mut self.role {
            backend.has_responded = true;
        }
        Ok(())
    }

    /// Fails a message that exceeds our limits. The peer's frames are valid, so nothing is charged.
    fn too_large(&mut self, id: u32, what: &'static str) {
        let is_client = matches!(self.role, PeerRole::Client(_));
        let Some(entry) = self.open_entry(id) else {
            return;
        };
        let ended = StreamError::TooLarge(what);
        if is_client {
            // The request ends here; a response can still be sent.
            entry.end_received = true;
            entry.recv_buffer.fail(ended);
            entry.wake_reader();
        } else {
            entry.close(ended);
            self.write_reset(id, ErrorCode::CANCEL);
        }
    }
}
