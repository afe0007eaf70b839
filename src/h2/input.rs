//! Handling of the peer's frames, RFC 9113 sections 5 and 6.

use super::{
    StreamError,
    closed_streams::ResetBy,
    connection::SHUTDOWN_PING,
    flood_guard::{ANSWERED_FRAME_COST, IDLE_FRAME_COST, LATE_HEAD_COST},
    recv_windows::RTT_PROBE,
    state::{ConnectionState, GoawayState, PartialData, PeerRole},
};
use crate::{
    base::clock,
    http::message::Trailers,
    http2::frame::{
        self, CLIENT_PREFACE, ErrorCode, Frame, HEADER_BYTES, MAX_PAYLOAD_BYTES, MAX_WINDOW_SIZE,
        flag, kind, setting,
    },
};

/// Protocol violation, and its scope (RFC 9113 section 5.4).
#[derive(Debug, thiserror::Error)]
pub(super) enum ProtocolError {
    /// The whole connection must be closed.
    #[error("connection error {0}")]
    Connection(ErrorCode),
    /// Only this stream is reset.
    #[error("error {1} of stream {0}")]
    Stream(u32, ErrorCode),
}

impl From<ErrorCode> for ProtocolError {
    fn from(code: ErrorCode) -> Self {
        Self::Connection(code)
    }
}

/// State of the stream that a frame is for.
pub(super) enum StreamState {
    /// In use.
    Open,
    /// Closed, RFC 9113 section 5.1.
    Closed,
}

impl ConnectionState {
    /// Handles the frames in `bytes`; returns the number of bytes used.
    pub(super) fn recv_frames(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while self.close_reason.is_none() {
            debug_assert!(used <= bytes.len(), "a frame is not longer than its bytes");
            match self.recv_next(bytes.get(used..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(count) => used += count,
                Err(code) => self.fail(code),
            }
        }
        used
    }

    /// Handles the next frame or part of one; 0: more bytes are needed.
    fn recv_next(&mut self, bytes: &[u8]) -> Result<usize, ErrorCode> {
        if self.preface_left > 0 {
            return self.recv_preface(bytes);
        }
        if self.partial_data.is_some() {
            return Ok(self.recv_content(bytes));
        }
        let Some(frame) = Frame::read(bytes) else {
            return Ok(0);
        };
        if !self.settings_received && bytes.starts_with(b"HTTP/") {
            self.close(StreamError::Http1);
            return Ok(0);
        }
        self.check_header(frame)?;
        // Wait for as much of the frame as its handling needs.
        let head = HEADER_BYTES + usize::from(frame.kind == kind::DATA && frame.has(flag::PADDED));
        let whole = HEADER_BYTES + frame.length;
        // DATA is streamed: it is handled before its content is complete.
        let needed = if frame.kind == kind::DATA {
            head
        } else {
            whole
        };
        let Some(payload) = bytes.get(HEADER_BYTES..needed) else {
            return Ok(0);
        };
        // Charge the frame before its work is done, and let it show that the backend is alive.
        self.flood_guard.charge_frame(frame);
        if self.flood_guard.is_exhausted() {
            return Err(ErrorCode::ENHANCE_YOUR_CALM);
        }
        if let PeerRole::Backend(backend) = &mut self.role {
            backend.asked_at = None;
            backend.probed_at = None;
        }
        match self.on_frame(frame, payload) {
            Ok(()) => {}
            Err(ProtocolError::Stream(id, code)) => self.reset(id, code),
            Err(ProtocolError::Connection(code)) => return Err(code),
        }
        Ok(needed)
    }

    /// Checks the client preface, RFC 9113 section 3.4.
    fn recv_preface(&mut self, bytes: &[u8]) -> Result<usize, ErrorCode> {
        let expected = CLIENT_PREFACE
            .get(CLIENT_PREFACE.len() - self.preface_left..)
            .unwrap_or_default();
        let count = expected.len().min(bytes.len());
        if bytes.get(..count) != expected.get(..count) {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        self.preface_left -= count;
        Ok(count)
    }

    /// Checks that need only the frame header, before its payload is awaited: a bad frame costs no
    /// memory.
    fn check_header(&self, frame: Frame) -> Result<(), ErrorCode> {
        if frame.length > MAX_PAYLOAD_BYTES {
            return Err(ErrorCode::FRAME_SIZE_ERROR);
        }
        let is_greeting = frame.kind == kind::SETTINGS && !frame.has(flag::ACK);
        // Section 6.10: no other frame may come between those of a field block.
        let is_between = match &self.partial_block {
            Some(block) => frame.kind != kind::CONTINUATION || frame.stream != block.stream,
            None => frame.kind == kind::CONTINUATION,
        };
        // Section 5.1: stream 0 stands for the connection.
        let is_of_connection = matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        let is_of_stream = matches!(
            frame.kind,
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM
        );
        if !self.settings_received && !is_greeting
            || is_between
            || is_of_connection && frame.stream != 0
            || is_of_stream && frame.stream == 0
            || frame.kind == kind::PUSH_PROMISE
        {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        // Section 6 fixes the size of most frames; DATA needs the length of its padding.
        let is_sized = match frame.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => frame.length == 4,
            kind::PING => frame.length == 8,
            kind::GOAWAY => frame.length >= 8,
            kind::SETTINGS if frame.has(flag::ACK) => frame.length == 0,
            kind::SETTINGS => frame.length.is_multiple_of(6),
            kind::PRIORITY => frame.length == 5,
            kind::DATA => frame.length > 0 || !frame.has(flag::PADDED),
            _ => true,
        };
        if is_sized {
            Ok(())
        } else {
            Err(ErrorCode::FRAME_SIZE_ERROR)
        }
    }

    fn on_frame(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ProtocolError> {
        match frame.kind {
            kind::DATA => self.on_data(frame, payload.first().copied()),
            kind::HEADERS => self.on_headers(frame, payload),
            kind::CONTINUATION => self.on_continuation(frame, payload),
            kind::PRIORITY if depends_on_itself(frame.stream, payload) => {
                self.on_self_dependent_priority(frame.stream)
            }
            kind::RST_STREAM => self.on_rst_stream(frame.stream, payload),
            kind::SETTINGS if !frame.has(flag::ACK) => self.on_settings(payload),
            kind::SETTINGS => {
                self.on_settings_ack();
                Ok(())
            }
            kind::PING if frame.has(flag::ACK) => {
                if payload == SHUTDOWN_PING {
                    self.finish_shutdown();
                } else if payload == RTT_PROBE {
                    self.windows.finish_probe(clock::now());
                }
                Ok(())
            }
            kind::PING => {
                frame::write(&mut self.out, kind::PING, flag::ACK, 0, payload);
                Ok(())
            }
            kind::GOAWAY => {
                self.on_goaway(payload);
                Ok(())
            }
            kind::WINDOW_UPDATE => self.on_window_update(frame.stream, payload),
            _ => Ok(()),
        }
    }

    /// Returns the state of stream `id`. A frame for a stream that was never opened is a connection
    /// error, RFC 9113 section 5.1.
    pub(super) fn stream_state(&self, id: u32) -> Result<StreamState, ProtocolError> {
        if self.streams.contains_key(&id) {
            return Ok(StreamState::Open);
        }
        if id > self.last_stream_id || id.is_multiple_of(2) {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        Ok(StreamState::Closed)
    }

    /// Accepts a frame for a closed stream if it was sent before our RST_STREAM arrived.
    pub(super) fn check_closed(&self, id: u32) -> Result<(), ProtocolError> {
        match self.closed_streams.reset_by(id) {
            Some(ResetBy::Us) => Ok(()),
            Some(ResetBy::Peer) | None => Err(ProtocolError::Stream(id, ErrorCode::STREAM_CLOSED)),
        }
    }

    /// Checks a frame for a stream that was reset, and that its exchange still holds.
    pub(super) fn check_reset(&self, id: u32) -> Result<(), ProtocolError> {
        match self.closed_streams.reset_by(id) {
            Some(ResetBy::Peer) => self.check_closed(id),
            Some(ResetBy::Us) | None => Ok(()),
        }
    }

    /// Like [`Self::check_closed`] for a field block, which had to be decoded to keep the HPACK
    /// table right.
    pub(super) fn check_closed_headers(&mut self, id: u32) -> Result<(), ProtocolError> {
        self.flood_guard.charge(LATE_HEAD_COST);
        // RFC 9113 section 5.1.1: the ids of requests only grow.
        let is_client = matches!(self.role, PeerRole::Client(_));
        if is_client && self.closed_streams.reset_by(id).is_none() {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        self.check_closed(id)
    }

    /// Handles a PRIORITY frame that makes a stream depend on itself, RFC 7540 section 5.3.1.
    fn on_self_dependent_priority(&mut self, id: u32) -> Result<(), ProtocolError> {
        if self.open_entry(id).is_some() {
            return Err(ProtocolError::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        // RFC 9113 section 6.4: no RST_STREAM for an idle stream, so that is a connection error. A
        // closed one needs none.
        self.stream_state(id).map(drop)
    }

    /// Resets a stream on which the peer violated the protocol.
    fn reset(&mut self, id: u32, code: ErrorCode) {
        self.refuse(id, code, StreamError::Invalid(code));
    }

    /// Resets a stream with a malformed message, RFC 9113 section 8.1.1.
    pub(super) fn malformed(&mut self, id: u32, what: &'static str) {
        self.refuse(id, ErrorCode::PROTOCOL_ERROR, StreamError::Malformed(what));
    }

    fn refuse(&mut self, id: u32, code: ErrorCode, why: StreamError) {
        match self.streams.get_mut(&id) {
            Some(entry) if entry.error.is_none() => {
                entry.close(why);
                self.flood_guard.charge_reset();
            }
            // The peer knows of the reset, or will.
            Some(_) if self.closed_streams.reset_by(id) != Some(ResetBy::Peer) => return,
            // No request was under way: only the frame itself costs something.
            _ => self.flood_guard.charge(ANSWERED_FRAME_COST),
        }
        self.write_reset(id, code);
    }

    /// Refuses a request before any processing, RFC 9113 section 8.7: the client may retry it.
    /// `is_expected`: the client could not know better.
    pub(super) fn refuse_request(&mut self, id: u32, is_expected: bool) {
        self.flood_guard.charge_refusal(is_expected);
        self.write_reset(id, ErrorCode::REFUSED_STREAM);
    }

    /// Handles the header of a DATA frame, RFC 9113 section 6.1.
    fn on_data(&mut self, frame: Frame, padding: Option<u8>) -> Result<(), ProtocolError> {
        let id = frame.stream;
        let extra = padding.map_or(0, |length| usize::from(length) + 1);
        let Some(left) = frame.length.checked_sub(extra) else {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        };
        // Padding counts for flow control (section 6.9.1), and so does content that is discarded:
        // the peer has counted it, too.
        if !self.windows.connection.consume(frame.length) {
            return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
        }
        let mut part = PartialData {
            stream: id,
            left,
            padding: padding.map_or(0, usize::from),
            ends: frame.has(flag::END_STREAM),
            is_waste: false,
        };
        self.flood_guard.charge_data(left, part.ends);
        let checked = self.check_data(frame);
        part.is_waste = !matches!(checked, Ok(true));
        // Give back at once what no reader will consume.
        if part.is_waste {
            self.release(frame.length);
        } else if extra > 0 {
            self.release(extra);
            self.release_on_stream(id, extra);
        }
        if part.left + part.padding > 0 {
            self.partial_data = Some(part);
        } else if !part.is_waste && part.ends {
            self.on_end_stream(id, Trailers::new());
        }
        checked.map(|_| ())
    }

    /// True if the content of the frame is to be kept.
    fn check_data(&mut self, frame: Frame) -> Result<bool, ProtocolError> {
        let id = frame.stream;
        if let StreamState::Closed = self.stream_state(id)? {
            return self.check_closed(id).map(|()| false);
        }
        let Some(entry) = self.open_entry(id) else {
            return self.check_reset(id).map(|()| false);
        };
        if entry.end_received {
            return Err(ProtocolError::Stream(id, ErrorCode::STREAM_CLOSED));
        }
        if !entry.recv_buffer.has_head() {
            self.malformed(id, "content before the head");
            return Ok(false);
        }
        if !entry.recv_window.consume(frame.length) {
            return Err(ProtocolError::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        Ok(true)
    }

    /// Handles content and padding of a DATA frame as far as received.
    fn recv_content(&mut self, bytes: &[u8]) -> usize {
        let Some(mut part) = self.partial_data.take() else {
            return 0;
        };
        let here = bytes.get(..part.left).unwrap_or(bytes);
        part.left -= here.len();
        let skipped = part.padding.min(bytes.len() - here.len());
        part.padding -= skipped;
        if !part.is_waste {
            self.on_content(part.stream, here);
        }
        if part.left + part.padding > 0 {
            self.partial_data = Some(part);
        } else if !part.is_waste && part.ends {
            self.on_end_stream(part.stream, Trailers::new());
        }
        here.len() + skipped
    }

    fn on_content(&mut self, id: u32, bytes: &[u8]) {
        let Some(entry) = self.open_entry(id) else {
            return self.release(bytes.len());
        };
        if !entry.recv_buffer.expects_content() {
            self.release(bytes.len());
            return self.release_on_stream(id, bytes.len());
        }
        if entry.recv_buffer.push_content(bytes) {
            entry.wake_reader();
        } else {
            self.release(bytes.len());
            self.malformed(id, "more content than was declared");
        }
    }

    /// Handles the end of the peer's message.
    pub(super) fn on_end_stream(&mut self, id: u32, trailers: Trailers) {
        let Some(entry) = self.open_entry(id) else {
            return;
        };
        entry.end_received = true;
        if entry.recv_buffer.finish(trailers) {
            entry.wake_reader();
        } else {
            // RFC 9113 section 8.1.1: a Content-Length that does not match is malformed.
            self.malformed(id, "less content than was declared");
        }
    }

    /// Handles RST_STREAM, RFC 9113 section 6.4.
    fn on_rst_stream(&mut self, id: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        self.stream_state(id)?;
        if let Some(entry) = self.streams.get_mut(&id)
            && entry.error.is_none()
        {
            // A reset after the response costs us nothing; a rapid one wastes a request.
            if !entry.end_sent && entry.is_rapid(clock::now()) {
                self.flood_guard.charge_reset();
            }
            debug_assert!(payload.len() == 4, "checked with the header");
            let code = frame::u32_at(payload, 0).unwrap_or_default();
            entry.close(StreamError::Reset(ErrorCode(code)));
            self.closed_streams.insert(id, ResetBy::Peer);
        } else {
            self.flood_guard.charge(IDLE_FRAME_COST);
        }
        Ok(())
    }

    /// Handles SETTINGS, RFC 9113 section 6.5.
    fn on_settings(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        let mut window = None;
        for (name, value) in frame::settings(payload) {
            match (name, value) {
                (setting::HEADER_TABLE_SIZE, size) => self.encoder.set_max_size(size),
                // Only the last value is applied: each change walks all streams, and a frame can
                // hold 2,730 of them.
                (setting::INITIAL_WINDOW_SIZE, 0..=MAX_WINDOW_SIZE) => window = Some(value),
                (setting::INITIAL_WINDOW_SIZE, _) => {
                    return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
                }
                (setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL, 2..)
                | (setting::MAX_FRAME_SIZE, ..0x4000 | 0x0100_0000..) => {
                    return Err(ErrorCode::PROTOCOL_ERROR.into());
                }
                _ => {}
            }
            if let PeerRole::Backend(backend) = &mut self.role {
                match name {
                    setting::MAX_CONCURRENT_STREAMS => backend.max_streams = Some(value),
                    setting::ENABLE_CONNECT_PROTOCOL => backend.supports_connect = value == 1,
                    setting::ENABLE_PUSH if value == 1 => {
                        return Err(ErrorCode::PROTOCOL_ERROR.into());
                    }
                    _ => {}
                }
            }
        }
        if let Some(size) = window {
            self.on_initial_window_size(size)?;
        }
        self.settings_received = true;
        frame::write(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    /// Applies a new initial window to all streams, RFC 9113 section 6.9.2.
    fn on_initial_window_size(&mut self, size: u32) -> Result<(), ProtocolError> {
        let change = i64::from(size) - i64::from(self.peer_initial_window);
        self.peer_initial_window = size;
        for entry in self.streams.values_mut() {
            if !entry.send_window.adjust(change) {
                return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
            }
            entry.wake_writer();
        }
        Ok(())
    }

    /// Handles WINDOW_UPDATE, RFC 9113 section 6.9.
    fn on_window_update(&mut self, id: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        debug_assert!(payload.len() == 4, "checked with the header");
        let more = frame::u31(payload, 0).unwrap_or_default();
        self.flood_guard.charge_window_update(id == 0, more);
        if id == 0 {
            return match more {
                0 => Err(ErrorCode::PROTOCOL_ERROR.into()),
                more if !self.send_window.adjust(i64::from(more)) => {
                    Err(ErrorCode::FLOW_CONTROL_ERROR.into())
                }
                // Waiting streams are woken by the driver, after this read.
                more => {
                    self.acknowledged(more);
                    Ok(())
                }
            };
        }
        if let StreamState::Closed = self.stream_state(id)? {
            return Ok(());
        }
        let Some(entry) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if more == 0 {
            return Err(ProtocolError::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        if !entry.send_window.adjust(i64::from(more)) {
            return Err(ProtocolError::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        entry.window_update_received = true;
        entry.unacknowledged = entry.unacknowledged.saturating_sub(more as usize);
        entry.wake_writer();
        Ok(())
    }

    /// Sends the final GOAWAY: the client has read the first one, or had time to.
    pub(super) fn finish_shutdown(&mut self) {
        if let PeerRole::Client(client) = &mut self.role
            && client.goaway == GoawayState::Announced
        {
            client.goaway = GoawayState::Final;
            frame::write_goaway(&mut self.out, self.last_stream_id, ErrorCode::NO_ERROR);
        }
    }

    /// Handles GOAWAY, RFC 9113 section 6.8: streams above the named one were not processed.
    fn on_goaway(&mut self, payload: &[u8]) {
        match &mut self.role {
            PeerRole::Client(client) => client.goaway_received = true,
            PeerRole::Backend(backend) => {
                backend.is_closing = true;
                debug_assert!(payload.len() >= 8, "checked with the header");
                let last = frame::u31(payload, 0).unwrap_or_default();
                let code = ErrorCode(frame::u32_at(payload, 4).unwrap_or_default());
                let beyond = self.streams.iter_mut().filter(|(id, _)| **id > last);
                beyond.for_each(|(_, entry)| entry.close(StreamError::NotProcessed(code)));
            }
        }
    }
}

/// True if the priority in `payload` makes stream `id` depend on itself, RFC 7540 section 5.3.1.
pub(super) fn depends_on_itself(id: u32, payload: &[u8]) -> bool {
    frame::u31(payload, 0) == Some(id)
}
