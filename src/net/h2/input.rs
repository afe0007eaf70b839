//! What the frames of a peer do to a connection, RFC 9113 sections 5 and 6.

use super::{
    Ended,
    connection::FAREWELL,
    core::{Core, Leave, Part, Role},
    flood_guard::{ANSWERED_FRAME_COST, IDLE_FRAME_COST, LATE_HEAD_COST},
    recv_windows::RTT_PROBE,
};
use crate::{
    base::clock,
    http2::frame::{self, Code, Frame, HEADER, LARGEST, MAX_PAYLOAD, PREFACE, flag, kind, setting},
};

/// What is wrong with a frame.
pub(super) enum Wrong {
    /// The connection cannot go on.
    Connection(Code),
    /// This stream cannot.
    Stream(u32, Code),
}

impl From<Code> for Wrong {
    fn from(code: Code) -> Self {
        Self::Connection(code)
    }
}

/// Whose stream a frame is for.
pub(super) enum Whose {
    /// It is in use.
    Open,
    /// It has been.
    Past,
}

impl Core {
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
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Code> {
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
            self.end(Ended::Http1);
            return Ok(0);
        }
        self.check(frame)?;
        let head = HEADER + usize::from(frame.kind == kind::DATA && frame.has(flag::PADDED));
        let whole = HEADER + frame.length;
        // Of content the beginning is enough.
        let needed = if frame.kind == kind::DATA {
            head
        } else {
            whole
        };
        let Some(payload) = bytes.get(HEADER..needed) else {
            return Ok(0);
        };
        self.flood_guard.charge_frame(frame);
        if self.flood_guard.is_exhausted() {
            return Err(Code::ENHANCE_YOUR_CALM);
        }
        if let Role::Backend(backend) = &mut self.role {
            backend.asked = None;
            backend.probed = None;
        }
        match self.frame(frame, payload) {
            Ok(()) => {}
            Err(Wrong::Stream(id, code)) => self.reset(id, code),
            Err(Wrong::Connection(code)) => return Err(code),
        }
        Ok(needed)
    }

    /// What must come first, RFC 9113 section 3.4.
    fn preface(&mut self, bytes: &[u8]) -> Result<usize, Code> {
        let expected = PREFACE
            .get(PREFACE.len() - self.preface..)
            .unwrap_or_default();
        let count = expected.len().min(bytes.len());
        if bytes.get(..count) != expected.get(..count) {
            return Err(Code::PROTOCOL_ERROR);
        }
        self.preface -= count;
        Ok(count)
    }

    /// What can be said by the header alone.
    fn check(&self, frame: Frame) -> Result<(), Code> {
        if frame.length > MAX_PAYLOAD {
            return Err(Code::FRAME_SIZE_ERROR);
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
            return Err(Code::PROTOCOL_ERROR);
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
            Err(Code::FRAME_SIZE_ERROR)
        }
    }

    fn frame(&mut self, frame: Frame, payload: &[u8]) -> Result<(), Wrong> {
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
    pub(super) fn whose(&self, id: u32) -> Result<Whose, Wrong> {
        if self.flows.contains_key(&id) {
            return Ok(Whose::Open);
        }
        if id > self.last || id.is_multiple_of(2) {
            return Err(Code::PROTOCOL_ERROR.into());
        }
        Ok(Whose::Past)
    }

    /// A frame for a stream that is past: on its way when we ended it, or wrong.
    pub(super) fn is_past(&self, id: u32) -> Result<(), Wrong> {
        if self.closed.contains(id) {
            return Ok(());
        }
        Err(Wrong::Stream(id, Code::STREAM_CLOSED))
    }

    /// The same of fields.
    pub(super) fn is_late(&mut self, id: u32) -> Result<(), Wrong> {
        self.flood_guard.charge(LATE_HEAD_COST);
        self.is_past(id)
    }

    /// Ends a stream whose peer does what it may not.
    fn reset(&mut self, id: u32, code: Code) {
        self.refuse(id, code, Ended::Invalid(code));
    }

    /// Ends a stream whose message is none, RFC 9113 section 8.1.1.
    pub(super) fn malformed(&mut self, id: u32, what: &'static str) {
        self.refuse(id, Code::PROTOCOL_ERROR, Ended::Malformed(what));
    }

    fn refuse(&mut self, id: u32, code: Code, why: Ended) {
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
        self.write_reset(id, Code::REFUSED_STREAM);
    }

    /// The beginning of a DATA frame, RFC 9113 section 6.1.
    fn data(&mut self, frame: Frame, padding: Option<u8>) -> Result<(), Wrong> {
        let id = frame.stream;
        let extra = padding.map_or(0, |length| usize::from(length) + 1);
        let Some(left) = frame.length.checked_sub(extra) else {
            return Err(Code::PROTOCOL_ERROR.into());
        };
        if !self.windows.connection.consume(frame.length) {
            return Err(Code::FLOW_CONTROL_ERROR.into());
        }
        let mut part = Part {
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
    fn check_data(&mut self, frame: Frame) -> Result<bool, Wrong> {
        let id = frame.stream;
        if let Whose::Past = self.whose(id)? {
            return self.is_past(id).map(|()| false);
        }
        let Some(flow) = self.live(id) else {
            return Ok(false);
        };
        if flow.got_end {
            return Err(Wrong::Stream(id, Code::STREAM_CLOSED));
        }
        if !flow.reader.is_begun() {
            self.malformed(id, "content before the head");
            return Ok(false);
        }
        if !flow.inward.consume(frame.length) {
            return Err(Wrong::Stream(id, Code::FLOW_CONTROL_ERROR));
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
    fn was_reset(&mut self, id: u32, payload: &[u8]) -> Result<(), Wrong> {
        self.whose(id)?;
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.ended.is_none()
        {
            if !flow.sent_end && flow.is_rapid(clock::now()) {
                self.flood_guard.charge_reset();
            }
            let code = frame::u32_at(payload, 0).unwrap_or_default();
            flow.end(Ended::Reset(Code(code)));
        } else {
            self.flood_guard.charge(IDLE_FRAME_COST);
        }
        Ok(())
    }

    /// RFC 9113 section 6.5.
    fn settings(&mut self, payload: &[u8]) -> Result<(), Wrong> {
        let mut window = None;
        for (name, value) in frame::settings(payload) {
            match (name, value) {
                // Said many times it would be much work: the last one counts.
                (setting::INITIAL_WINDOW_SIZE, 0..=LARGEST) => window = Some(value),
                (setting::INITIAL_WINDOW_SIZE, _) => return Err(Code::FLOW_CONTROL_ERROR.into()),
                (setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL, 2..)
                | (setting::MAX_FRAME_SIZE, ..0x4000 | 0x0100_0000..) => {
                    return Err(Code::PROTOCOL_ERROR.into());
                }
                _ => {}
            }
            if let Role::Backend(backend) = &mut self.role {
                match name {
                    setting::MAX_CONCURRENT_STREAMS => backend.most = Some(value),
                    setting::ENABLE_CONNECT_PROTOCOL => backend.takes_connect = value == 1,
                    setting::ENABLE_PUSH if value == 1 => return Err(Code::PROTOCOL_ERROR.into()),
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
    fn resize(&mut self, size: u32) -> Result<(), Wrong> {
        let change = i64::from(size) - i64::from(self.initial);
        self.initial = size;
        for flow in self.flows.values_mut() {
            if !flow.outward.change(change) {
                return Err(Code::FLOW_CONTROL_ERROR.into());
            }
            flow.wake_writer();
        }
        Ok(())
    }

    /// RFC 9113 section 6.9.
    fn window(&mut self, id: u32, payload: &[u8]) -> Result<(), Wrong> {
        let more = frame::u31(payload, 0).unwrap_or_default();
        self.flood_guard.charge_window_update(id == 0, more);
        if id == 0 {
            return match more {
                0 => Err(Code::PROTOCOL_ERROR.into()),
                more if !self.outward.change(i64::from(more)) => {
                    Err(Code::FLOW_CONTROL_ERROR.into())
                }
                // The driver wakes those that wait for it.
                more => {
                    self.acknowledged(more);
                    Ok(())
                }
            };
        }
        if let Whose::Past = self.whose(id)? {
            return Ok(());
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return Ok(());
        };
        if more == 0 {
            return Err(Wrong::Stream(id, Code::PROTOCOL_ERROR));
        }
        if !flow.outward.change(i64::from(more)) {
            return Err(Wrong::Stream(id, Code::FLOW_CONTROL_ERROR));
        }
        flow.is_opened = true;
        flow.unacknowledged = flow.unacknowledged.saturating_sub(more as usize);
        flow.wake_writer();
        Ok(())
    }

    /// The client has seen that we leave, or has had the time for it.
    pub(super) fn take_leave(&mut self) {
        if let Role::Client(client) = &mut self.role
            && client.leave == Leave::Announced
        {
            client.leave = Leave::Taken;
            frame::write_goaway(&mut self.out, self.last, Code::NO_ERROR);
        }
    }

    /// The peer leaves, RFC 9113 section 6.8: it will not look at streams of ours beyond the last that it names.
    fn is_left(&mut self, payload: &[u8]) {
        match &mut self.role {
            Role::Client(client) => client.is_leaving = true,
            Role::Backend(backend) => {
                backend.is_leaving = true;
                let last = frame::u31(payload, 0).unwrap_or_default();
                let code = Code(frame::u32_at(payload, 4).unwrap_or_default());
                let beyond = self.flows.iter_mut().filter(|(id, _)| **id > last);
                beyond.for_each(|(_, flow)| flow.end(Ended::Unseen(code)));
            }
        }
    }
}
