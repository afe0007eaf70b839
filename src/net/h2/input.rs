//! What the frames of a peer do to a connection, RFC 9113 sections 5 and 6.

use super::{
    StreamError,
    connection::FAREWELL,
    flood_guard::{ANSWERED_FRAME_COST, IDLE_FRAME_COST, LATE_HEAD_COST},
    recv_windows::RTT_PROBE,
    state::{ConnectionState, GoawayState, PartialData, PeerRole},
};
use crate::{
    base::clock,
    http2::frame::{
        self, CLIENT_PREFACE, ErrorCode, Frame, HEADER_BYTES, LARGEST, MAX_PAYLOAD_BYTES, flag,
        kind, setting,
    },
};

/// What is wrong with a frame.
pub(super) enum ProtocolError {
    /// The connection cannot go on.
    Connection(ErrorCode),
    /// This stream cannot.
    Stream(u32, ErrorCode),
}

impl From<ErrorCode> for ProtocolError {
    fn from(code: ErrorCode) -> Self {
        Self::Connection(code)
    }
}

/// Whose stream a frame is for.
pub(super) enum StreamState {
    /// It is in use.
    Open,
    /// It has been.
    Past,
}

impl ConnectionState {
    /// Does what the frames in `bytes` say; gives how many bytes that took.
    pub(super) fn digest(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while self.fate.is_none() {
            match self.step(bytes.get(used..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(count) => used += count,
                Err(code) => self.fail(code),
            }
        }
        used
    }

    /// Looks at the bytes at the front; 0: more are needed.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ErrorCode> {
        if self.preface > 0 {
            return self.preface(bytes);
        }
        if self.part.is_some() {
            return Ok(self.content(bytes));
        }
        let Some(frame) = Frame::read(bytes) else {
            return Ok(0);
        };
        if !self.is_greeted && bytes.starts_with(b"HTTP/") {
            self.end(StreamError::Http1);
            return Ok(0);
        }
        self.check(frame)?;
        let head = HEADER_BYTES + usize::from(frame.kind == kind::DATA && frame.has(flag::PADDED));
        let whole = HEADER_BYTES + frame.length;
        // Of content the beginning is enough.
        let needed = if frame.kind == kind::DATA {
            head
        } else {
            whole
        };
        let Some(payload) = bytes.get(HEADER_BYTES..needed) else {
            return Ok(0);
        };
        self.flood_guard.charge_frame(frame);
        if self.flood_guard.is_exhausted() {
            return Err(ErrorCode::ENHANCE_YOUR_CALM);
        }
        if let PeerRole::Backend(backend) = &mut self.role {
            backend.asked = None;
            backend.probed = None;
        }
        match self.frame(frame, payload) {
            Ok(()) => {}
            Err(ProtocolError::Stream(id, code)) => self.reset(id, code),
            Err(ProtocolError::Connection(code)) => return Err(code),
        }
        Ok(needed)
    }

    /// What must come first, RFC 9113 section 3.4.
    fn preface(&mut self, bytes: &[u8]) -> Result<usize, ErrorCode> {
        let expected = CLIENT_PREFACE
            .get(CLIENT_PREFACE.len() - self.preface..)
            .unwrap_or_default();
        let count = expected.len().min(bytes.len());
        if bytes.get(..count) != expected.get(..count) {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        self.preface -= count;
        Ok(count)
    }

    /// What can be said by the header alone.
    fn check(&self, frame: Frame) -> Result<(), ErrorCode> {
        if frame.length > MAX_PAYLOAD_BYTES {
            return Err(ErrorCode::FRAME_SIZE_ERROR);
        }
        let is_greeting = frame.kind == kind::SETTINGS && !frame.has(flag::ACK);
        // Section 6.10: nothing may come between the frames of a block.
        let is_between = match &self.block {
            Some(block) => frame.kind != kind::CONTINUATION || frame.stream != block.stream,
            None => frame.kind == kind::CONTINUATION,
        };
        let is_of_connection = matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        let is_of_stream = matches!(
            frame.kind,
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM
        );
        if !self.is_greeted && !is_greeting
            || is_between
            || is_of_connection && frame.stream != 0
            || is_of_stream && frame.stream == 0
            || frame.kind == kind::PUSH_PROMISE
        {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
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

    fn frame(&mut self, frame: Frame, payload: &[u8]) -> Result<(), ProtocolError> {
        match frame.kind {
            kind::DATA => self.data(frame, payload.first().copied()),
            kind::HEADERS => self.headers(frame, payload),
            kind::CONTINUATION => self.continuation(frame, payload),
            kind::RST_STREAM => self.was_reset(frame.stream, payload),
            kind::SETTINGS if !frame.has(flag::ACK) => self.settings(payload),
            kind::SETTINGS => {
                self.settings_acknowledged();
                Ok(())
            }
            kind::PING if frame.has(flag::ACK) => {
                if payload == FAREWELL {
                    self.take_leave();
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
                self.is_left(payload);
                Ok(())
            }
            kind::WINDOW_UPDATE => self.window(frame.stream, payload),
            _ => Ok(()),
        }
    }

    /// Whose stream `id` is; one that has not begun is an error of the connection, RFC 9113 section 5.1.
    pub(super) fn whose(&self, id: u32) -> Result<StreamState, ProtocolError> {
        if self.flows.contains_key(&id) {
            return Ok(StreamState::Open);
        }
        if id > self.last || id.is_multiple_of(2) {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        Ok(StreamState::Past)
    }

    /// A frame for a stream that is past: on its way when we ended it, or wrong.
    pub(super) fn is_past(&self, id: u32) -> Result<(), ProtocolError> {
        if self.closed.contains(id) {
            return Ok(());
        }
        Err(ProtocolError::Stream(id, ErrorCode::STREAM_CLOSED))
    }

    /// The same of fields.
    pub(super) fn is_late(&mut self, id: u32) -> Result<(), ProtocolError> {
        self.flood_guard.charge(LATE_HEAD_COST);
        self.is_past(id)
    }

    /// Ends a stream whose peer does what it may not.
    fn reset(&mut self, id: u32, code: ErrorCode) {
        self.refuse(id, code, StreamError::Invalid(code));
    }

    /// Ends a stream whose message is none, RFC 9113 section 8.1.1.
    pub(super) fn malformed(&mut self, id: u32, what: &'static str) {
        self.refuse(id, ErrorCode::PROTOCOL_ERROR, StreamError::Malformed(what));
    }

    fn refuse(&mut self, id: u32, code: ErrorCode, why: StreamError) {
        if let Some(flow) = self.flows.get_mut(&id) {
            if flow.ended.is_some() {
                return;
            }
            flow.end(why);
            self.flood_guard.charge_reset();
        } else {
            // No work was wasted.
            self.flood_guard.charge(ANSWERED_FRAME_COST);
        }
        self.write_reset(id, code);
    }

    /// Refuses a request before anything is done for it, RFC 9113 section 8.7. `is_expected`: the client cannot know better.
    pub(super) fn refuse_request(&mut self, id: u32, is_expected: bool) {
        self.flood_guard.charge_refusal(is_expected);
        self.write_reset(id, ErrorCode::REFUSED_STREAM);
    }

    /// The beginning of a DATA frame, RFC 9113 section 6.1.
    fn data(&mut self, frame: Frame, padding: Option<u8>) -> Result<(), ProtocolError> {
        let id = frame.stream;
        let extra = padding.map_or(0, |length| usize::from(length) + 1);
        let Some(left) = frame.length.checked_sub(extra) else {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        };
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
        if part.is_waste {
            self.give(frame.length);
        } else if extra > 0 {
            self.give(extra);
            self.give_to(id, extra);
        }
        if part.left + part.padding > 0 {
            self.part = Some(part);
        } else if !part.is_waste && part.ends {
            self.ends(id, Vec::new());
        }
        checked.map(|_| ())
    }

    /// True if somebody wants the content of the frame.
    fn check_data(&mut self, frame: Frame) -> Result<bool, ProtocolError> {
        let id = frame.stream;
        if let StreamState::Past = self.whose(id)? {
            return self.is_past(id).map(|()| false);
        }
        let Some(flow) = self.live(id) else {
            return Ok(false);
        };
        if flow.got_end {
            return Err(ProtocolError::Stream(id, ErrorCode::STREAM_CLOSED));
        }
        if !flow.reader.is_begun() {
            self.malformed(id, "content before the head");
            return Ok(false);
        }
        if !flow.inward.consume(frame.length) {
            return Err(ProtocolError::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        Ok(true)
    }

    /// Content and padding of a DATA frame, as far as they are there.
    fn content(&mut self, bytes: &[u8]) -> usize {
        let Some(mut part) = self.part.take() else {
            return 0;
        };
        let here = bytes.get(..part.left).unwrap_or(bytes);
        part.left -= here.len();
        let skipped = part.padding.min(bytes.len() - here.len());
        part.padding -= skipped;
        if !part.is_waste {
            self.push(part.stream, here);
        }
        if part.left + part.padding > 0 {
            self.part = Some(part);
        } else if !part.is_waste && part.ends {
            self.ends(part.stream, Vec::new());
        }
        here.len() + skipped
    }

    fn push(&mut self, id: u32, bytes: &[u8]) {
        let Some(flow) = self.live(id) else {
            return self.give(bytes.len());
        };
        if !flow.reader.wants_content() {
            self.give(bytes.len());
            return self.give_to(id, bytes.len());
        }
        if flow.reader.push(bytes) {
            flow.wake_reader();
        } else {
            self.give(bytes.len());
            self.malformed(id, "more content than was declared");
        }
    }

    /// The peer has come to the end of a message.
    pub(super) fn ends(&mut self, id: u32, trailers: Vec<u8>) {
        let Some(flow) = self.live(id) else {
            return;
        };
        flow.got_end = true;
        if flow.reader.end(trailers) {
            flow.wake_reader();
        } else {
            // RFC 9113 section 8.1.1.
            self.malformed(id, "less content than was declared");
        }
    }

    /// RFC 9113 section 6.4.
    fn was_reset(&mut self, id: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        self.whose(id)?;
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.ended.is_none()
        {
            if !flow.sent_end && flow.is_rapid(clock::now()) {
                self.flood_guard.charge_reset();
            }
            let code = frame::u32_at(payload, 0).unwrap_or_default();
            flow.end(StreamError::Reset(ErrorCode(code)));
        } else {
            self.flood_guard.charge(IDLE_FRAME_COST);
        }
        Ok(())
    }

    /// RFC 9113 section 6.5.
    fn settings(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        let mut window = None;
        for (name, value) in frame::settings(payload) {
            match (name, value) {
                // Said many times it would be much work: the last one counts.
                (setting::INITIAL_WINDOW_SIZE, 0..=LARGEST) => window = Some(value),
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
                    setting::MAX_CONCURRENT_STREAMS => backend.most = Some(value),
                    setting::ENABLE_CONNECT_PROTOCOL => backend.takes_connect = value == 1,
                    setting::ENABLE_PUSH if value == 1 => {
                        return Err(ErrorCode::PROTOCOL_ERROR.into());
                    }
                    _ => {}
                }
            }
        }
        if let Some(size) = window {
            self.resize(size)?;
        }
        self.is_greeted = true;
        frame::write(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    /// The windows of all streams begin with another size, RFC 9113 section 6.9.2.
    fn resize(&mut self, size: u32) -> Result<(), ProtocolError> {
        let change = i64::from(size) - i64::from(self.initial);
        self.initial = size;
        for flow in self.flows.values_mut() {
            if !flow.outward.change(change) {
                return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
            }
            flow.wake_writer();
        }
        Ok(())
    }

    /// RFC 9113 section 6.9.
    fn window(&mut self, id: u32, payload: &[u8]) -> Result<(), ProtocolError> {
        let more = frame::u31(payload, 0).unwrap_or_default();
        self.flood_guard.charge_window_update(id == 0, more);
        if id == 0 {
            return match more {
                0 => Err(ErrorCode::PROTOCOL_ERROR.into()),
                more if !self.outward.change(i64::from(more)) => {
                    Err(ErrorCode::FLOW_CONTROL_ERROR.into())
                }
                // The driver wakes those that wait for it.
                more => {
                    self.acknowledged(more);
                    Ok(())
                }
            };
        }
        if let StreamState::Past = self.whose(id)? {
            return Ok(());
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return Ok(());
        };
        if more == 0 {
            return Err(ProtocolError::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        if !flow.outward.change(i64::from(more)) {
            return Err(ProtocolError::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        flow.is_opened = true;
        flow.unacknowledged = flow.unacknowledged.saturating_sub(more as usize);
        flow.wake_writer();
        Ok(())
    }

    /// The client has seen that we leave, or has had the time for it.
    pub(super) fn take_leave(&mut self) {
        if let PeerRole::Client(client) = &mut self.role
            && client.leave == GoawayState::Announced
        {
            client.leave = GoawayState::Taken;
            frame::write_goaway(&mut self.out, self.last, ErrorCode::NO_ERROR);
        }
    }

    /// The peer leaves, RFC 9113 section 6.8: it will not look at streams of ours beyond the last that it names.
    fn is_left(&mut self, payload: &[u8]) {
        match &mut self.role {
            PeerRole::Client(client) => client.is_leaving = true,
            PeerRole::Backend(backend) => {
                backend.is_leaving = true;
                let last = frame::u31(payload, 0).unwrap_or_default();
                let code = ErrorCode(frame::u32_at(payload, 4).unwrap_or_default());
                let beyond = self.flows.iter_mut().filter(|(id, _)| **id > last);
                beyond.for_each(|(_, flow)| flow.end(StreamError::Unseen(code)));
            }
        }
    }
}
