//! Frames that a client sends, interpreted independently of the code under test.

use std::collections::HashMap;

use balancer::http2::frame::{
    Frame, HEADER_BYTES, INITIAL_WINDOW, MAX_PAYLOAD_BYTES, MAX_WINDOW_SIZE, flag, kind, setting,
    settings, u31,
};

/// Stream as its client sees it.
#[derive(Default)]
pub struct SentRequest {
    /// Content of all DATA frames up to the end.
    pub content: Vec<u8>,
    /// Length of all DATA frames.
    pub length: u64,
    pub has_end: bool,
    /// Sum of the WINDOW_UPDATEs.
    opened: i64,
}

/// All frames of a client; of invalid ones only those are skipped after which nothing could be
/// parsed.
pub struct SentFrames {
    rest: Vec<u8>,
    is_over: bool,
    pub streams: HashMap<u32, SentRequest>,
    opened: i64,
    initial: i64,
    /// Largest value of `initial` since all earlier frames took effect.
    largest: i64,
}

impl SentFrames {
    pub fn new() -> Self {
        Self {
            rest: Vec::new(),
            is_over: false,
            streams: HashMap::new(),
            opened: INITIAL_WINDOW.into(),
            initial: INITIAL_WINDOW.into(),
            largest: INITIAL_WINDOW.into(),
        }
    }

    /// Adds bytes that the client has sent.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let mut rest = &all[..];
        while !self.is_over
            && let Some(frame) = Frame::read(rest)
        {
            self.is_over = frame.length > MAX_PAYLOAD_BYTES;
            let Some(payload) = rest.get(HEADER_BYTES..HEADER_BYTES + frame.length) else {
                break;
            };
            self.frame(frame, payload);
            rest = &rest[HEADER_BYTES + frame.length..];
        }
        self.rest = rest.to_vec();
    }

    /// Marks all frames sent so far as effective.
    pub fn settle(&mut self) {
        self.largest = self.initial;
    }

    /// Ends the input: content of an incomplete DATA frame counts.
    pub fn finish(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        if let Some(frame) =
            Frame::read(&rest).filter(|frame| frame.kind == kind::DATA && !self.is_over)
        {
            self.data(frame, &rest[HEADER_BYTES..], false);
        }
    }

    fn frame(&mut self, frame: Frame, payload: &[u8]) {
        match frame.kind {
            kind::DATA => self.data(frame, payload, frame.has(flag::END_STREAM)),
            kind::HEADERS if frame.has(flag::END_STREAM) => {
                self.streams.entry(frame.stream).or_default().has_end = true;
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                for (name, value) in settings(payload) {
                    if name == setting::INITIAL_WINDOW_SIZE && value <= MAX_WINDOW_SIZE {
                        self.initial = value.into();
                        self.largest = self.largest.max(self.initial);
                    }
                }
            }
            kind::WINDOW_UPDATE => {
                let more = i64::from(u31(payload, 0).unwrap_or_default());
                if frame.stream == 0 {
                    self.opened += more;
                } else {
                    self.streams.entry(frame.stream).or_default().opened += more;
                }
            }
            _ => {}
        }
    }

    fn data(&mut self, frame: Frame, payload: &[u8], ends: bool) {
        let stream = self.streams.entry(frame.stream).or_default();
        stream.length += frame.length as u64;
        if stream.has_end {
            return;
        }
        let (mut content, mut length) = (payload, frame.length);
        if frame.has(flag::PADDED) {
            let Some((padding, behind)) = payload.split_first() else {
                return;
            };
            let Some(left) = length.checked_sub(1 + usize::from(*padding)) else {
                self.is_over = true;
                return;
            };
            (content, length) = (behind, left);
        }
        stream
            .content
            .extend_from_slice(&content[..length.min(content.len())]);
        stream.has_end = ends;
    }

    /// Most bytes that a stream, and the connection, can have received.
    pub fn most(&self, id: u32) -> (i64, i64) {
        let opened = self.streams.get(&id).map_or(0, |stream| stream.opened);
        (self.largest + opened, self.opened)
    }

    /// Bytes that a stream, and the connection, may receive now.
    pub fn allowed(&self, id: u32) -> (i64, i64) {
        let opened = self.streams.get(&id).map_or(0, |stream| stream.opened);
        (self.initial + opened, self.opened)
    }

    /// Length of all DATA frames.
    pub fn length(&self) -> u64 {
        self.streams.values().map(|stream| stream.length).sum()
    }
}
