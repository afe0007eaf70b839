//! Frames that a client receives: a sequence that RFC 9113 allows, within the windows of the
//! client.

use std::collections::HashMap;

use balancer::http2::{
    frame::{Frame, HEADER_BYTES, INITIAL_WINDOW, MAX_PAYLOAD_BYTES, flag, kind, u32_at},
    hpack::{FieldList, HpackDecoder, SizeLimits},
};

use super::sent_frames::SentFrames;

/// Beyond any response.
const MAX_FIELDS: SizeLimits = SizeLimits {
    kept: 1 << 20,
    decoded: 1 << 20,
};

/// Received part of a response.
#[derive(Default)]
pub struct ReceivedResponse {
    /// Value of the field `x-index`.
    pub index: Option<usize>,
    pub content: Vec<u8>,
    pub has_end: bool,
    pub is_reset: bool,
    /// The final head was received.
    is_begun: bool,
    /// Sum of the WINDOW_UPDATEs for the request.
    opened: u64,
}

/// Incomplete field block.
struct PartialBlock {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
}

/// All frames received so far.
pub struct ReceivedFrames {
    rest: Vec<u8>,
    decoder: HpackDecoder,
    block: Option<PartialBlock>,
    pub streams: HashMap<u32, ReceivedResponse>,
    content: i64,
    opened: u64,
    settings_received: bool,
    has_goaway: bool,
}

impl ReceivedFrames {
    pub fn new() -> Self {
        Self {
            rest: Vec::new(),
            decoder: HpackDecoder::default(),
            block: None,
            streams: HashMap::new(),
            content: 0,
            opened: INITIAL_WINDOW.into(),
            settings_received: false,
            has_goaway: false,
        }
    }

    /// Checks `bytes`, received after the client has sent `sent`.
    pub fn add(&mut self, bytes: &[u8], sent: &SentFrames) {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let mut rest = &all[..];
        while let Some(frame) = Frame::read(rest) {
            assert!(
                frame.length <= MAX_PAYLOAD_BYTES,
                "a frame that is too large"
            );
            let Some(payload) = rest.get(HEADER_BYTES..HEADER_BYTES + frame.length) else {
                break;
            };
            self.frame(frame, payload, sent);
            rest = &rest[HEADER_BYTES + frame.length..];
        }
        self.rest = rest.to_vec();
    }

    /// Checks the end; `is_cut`: frames may be incomplete.
    pub fn finish(&self, is_cut: bool, window: u64, growth: u64, sent: &SentFrames) {
        assert!(is_cut || self.rest.is_empty(), "half a frame");
        assert!(is_cut || self.block.is_none(), "half a field block");
        assert!(
            self.opened <= window + sent.length(),
            "the window of the connection grows"
        );
        let grown = self.streams.iter().map(|(id, stream)| {
            let length = sent.streams.get(id).map_or(0, |request| request.length);
            stream.opened.saturating_sub(length)
        });
        assert!(
            grown.sum::<u64>() <= growth,
            "the windows of streams grow beyond all bounds"
        );
    }

    /// True if the windows allow sending on the stream.
    pub fn has_room(&self, id: u32, sent: &SentFrames) -> bool {
        let (stream, connection) = sent.allowed(id);
        let sent = self.streams.get(&id).map_or(0, |it| it.content.len());
        stream > sent as i64 && connection > self.content
    }

    fn frame(&mut self, frame: Frame, payload: &[u8], sent: &SentFrames) {
        let is_settings = frame.kind == kind::SETTINGS && !frame.has(flag::ACK);
        assert_eq!(
            is_settings, !self.settings_received,
            "settings come first and once"
        );
        self.settings_received = true;
        assert_eq!(
            frame.kind == kind::CONTINUATION,
            self.block.is_some(),
            "a block is in frames that follow each other"
        );
        // Closing may release content, and so update a window.
        assert!(
            !self.has_goaway || frame.kind == kind::WINDOW_UPDATE,
            "more after the end"
        );
        let is_of_stream = frame.stream % 2 == 1;
        let is_of_connection = frame.stream == 0;
        let is_good = match frame.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => is_of_stream,
            kind::RST_STREAM => is_of_stream && frame.length == 4,
            kind::SETTINGS if frame.has(flag::ACK) => is_of_connection && frame.length == 0,
            kind::SETTINGS => is_of_connection && frame.length.is_multiple_of(6),
            kind::PING => is_of_connection && frame.length == 8,
            kind::GOAWAY => is_of_connection && frame.length == 8,
            kind::WINDOW_UPDATE => frame.length == 4 && (is_of_stream || is_of_connection),
            _ => false,
        };
        assert!(is_good, "{frame:?}");
        match frame.kind {
            kind::DATA => self.data(frame, payload, sent),
            kind::HEADERS | kind::CONTINUATION => self.fields(frame, payload),
            kind::RST_STREAM => self.streams.entry(frame.stream).or_default().is_reset = true,
            kind::GOAWAY => self.has_goaway = true,
            kind::WINDOW_UPDATE => self.window(frame.stream, u32_at(payload, 0)),
            _ => {}
        }
    }

    fn window(&mut self, id: u32, more: Option<u32>) {
        let more = u64::from(more.expect("four bytes"));
        assert!(more > 0, "a window that is opened by nothing");
        if id == 0 {
            self.opened += more;
        } else {
            self.streams.entry(id).or_default().opened += more;
        }
    }

    fn data(&mut self, frame: Frame, payload: &[u8], sent: &SentFrames) {
        assert_eq!(frame.flags & !flag::END_STREAM, 0);
        let stream = self.streams.entry(frame.stream).or_default();
        assert!(stream.is_begun && !stream.has_end && !stream.is_reset);
        stream.content.extend_from_slice(payload);
        stream.has_end = frame.has(flag::END_STREAM);
        self.content += payload.len() as i64;
        let (most, of_all) = sent.most(frame.stream);
        // END_STREAM without content needs no window.
        if !payload.is_empty() {
            assert!(stream.content.len() as i64 <= most, "beyond the window");
            assert!(self.content <= of_all, "beyond that of the connection");
        }
    }

    fn fields(&mut self, frame: Frame, payload: &[u8]) {
        let allowed = flag::END_HEADERS | flag::END_STREAM;
        assert_eq!(frame.flags & !allowed, 0);
        let mut block = self.block.take().unwrap_or(PartialBlock {
            stream: frame.stream,
            ends: frame.has(flag::END_STREAM),
            bytes: Vec::new(),
        });
        assert_eq!(block.stream, frame.stream);
        block.bytes.extend_from_slice(payload);
        if !frame.has(flag::END_HEADERS) {
            self.block = Some(block);
            return;
        }
        let mut fields = FieldList::default();
        self.decoder
            .decode(&block.bytes, MAX_FIELDS, &mut fields)
            .expect("a field block");
        let stream = self.streams.entry(block.stream).or_default();
        assert!(!stream.has_end && !stream.is_reset);
        stream.has_end = block.ends;
        stream.section(&fields, block.ends);
    }
}

impl ReceivedResponse {
    /// Checks a head or trailers.
    fn section(&mut self, fields: &FieldList, ends: bool) {
        let mut pseudo = 0;
        for (name, _) in fields.iter() {
            assert!(!name.iter().any(u8::is_ascii_uppercase));
            pseudo += usize::from(name.starts_with(b":"));
        }
        if self.is_begun {
            assert!(ends && pseudo == 0, "no trailers");
            return;
        }
        assert_eq!(pseudo, 1);
        let Some((b":status", [first, _, _])) = fields.iter().next() else {
            panic!("no status");
        };
        self.is_begun = *first > b'1';
        assert!(self.is_begun || !ends, "an interim response that ends");
        for (_, value) in fields.iter().filter(|(name, _)| *name == b"x-index") {
            let value = std::str::from_utf8(value).expect("what was written");
            self.index = value.parse().ok();
        }
    }
}
