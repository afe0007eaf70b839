//! Frames, RFC 9113 sections 4 and 6.

/// First bytes of a client, RFC 9113 section 3.4.
pub const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame header, RFC 9113 section 4.1.
pub const HEADER_BYTES: usize = 9;
/// Largest payload that we accept and send. Every peer must accept it (RFC 9113 section 4.2), and
/// larger frames would let one stream delay the others.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 10;
/// Largest flow-control window, RFC 9113 section 6.9.1.
pub const MAX_WINDOW_SIZE: u32 = LOW_31_BITS;
/// Largest stream id, RFC 9113 section 5.1.1.
pub const MAX_STREAM_ID: u32 = LOW_31_BITS;
/// Without the first bit, which is reserved and must be ignored (RFC 9113 section 4.1).
const LOW_31_BITS: u32 = (1 << 31) - 1;
/// Initial window of connections and streams, RFC 9113 section 6.9.2.
pub const INITIAL_WINDOW: u32 = 65_535;

/// Frame types, RFC 9113 section 6.
pub mod kind {
    /// Content of a message.
    pub const DATA: u8 = 0;
    /// Field block: a head or trailers.
    pub const HEADERS: u8 = 1;
    /// Deprecated (RFC 9113 section 5.3.2), still sent by browsers.
    pub const PRIORITY: u8 = 2;
    /// Ends a stream with an error code.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the sender.
    pub const SETTINGS: u8 = 4;
    /// Announces a pushed response; we never allow it.
    pub const PUSH_PROMISE: u8 = 5;
    /// Must be acknowledged by the peer.
    pub const PING: u8 = 6;
    /// No more streams are accepted.
    pub const GOAWAY: u8 = 7;
    /// Enlarges a window.
    pub const WINDOW_UPDATE: u8 = 8;
    /// Continues a field block.
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    /// Last frame of the sender on the stream.
    pub const END_STREAM: u8 = 1;
    /// Acknowledges SETTINGS or PING.
    pub const ACK: u8 = 1;
    /// The field block is complete: no CONTINUATION follows.
    pub const END_HEADERS: u8 = 4;
    /// The first byte is the length of the padding at the end.
    pub const PADDED: u8 = 8;
    /// Five bytes of priority come before the fields.
    pub const PRIORITY: u8 = 0x20;
}

/// Settings, RFC 9113 section 6.5.2 and RFC 8441 section 3.
pub mod setting {
    /// Largest table of the sender's decoder.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// The client accepts pushed responses.
    pub const ENABLE_PUSH: u16 = 2;
    /// Concurrent streams that the sender accepts.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// Initial window of each new stream.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// Largest payload that the sender accepts.
    pub const MAX_FRAME_SIZE: u16 = 5;
    /// Largest field section that the sender accepts; advisory.
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    /// The server supports extended CONNECT.
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error code of a stream or connection, RFC 9113 section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Graceful shutdown.
    pub const NO_ERROR: Self = Self(0);
    /// Protocol violation.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Fault of the sender.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than the window allows.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// Frame for a closed stream.
    pub const STREAM_CLOSED: Self = Self(5);
    /// Invalid frame size.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The request was not processed and may be sent again.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is no longer needed.
    pub const CANCEL: Self = Self(8);
    /// The field block cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The peer causes too much work.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const ERROR_NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match ERROR_NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "code {}", self.0),
        }
    }
}

/// Frame header, RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Length of the payload.
    pub length: usize,
    /// Type: one of [`kind`], or an unknown one.
    pub kind: u8,
    /// Flags, see [`flag`].
    pub flags: u8,
    /// Stream id; 0 for the connection.
    pub stream: u32,
}

impl Frame {
    /// Reads the header at the beginning of `bytes`, if complete.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        let [high, middle, low, kind, flags, stream @ ..] = *header;
        Some(Self {
            length: u32::from_be_bytes([0, high, middle, low]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & LOW_31_BITS,
        })
    }

    /// True if the flag is set.
    pub const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Writes the header into its reserved space in `out` at `start`.
    fn write_at(self, out: &mut [u8], start: usize) {
        if let Some(place) = out.get_mut(start..start + HEADER_BYTES) {
            place.copy_from_slice(&self.bytes());
        }
    }

    /// Bytes of the header.
    pub fn bytes(self) -> [u8; HEADER_BYTES] {
        let [_, high, middle, low] = (self.length as u32).to_be_bytes();
        let [a, b, c, d] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, a, b, c, d]
    }
}

/// Appends a frame.
pub fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let frame = Frame {
        length: payload.len(),
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&frame.bytes());
    out.extend_from_slice(payload);
}

/// Appends a frame with a payload of four bytes: RST_STREAM or WINDOW_UPDATE.
pub fn write_u32(out: &mut Vec<u8>, kind: u8, stream: u32, value: u32) {
    write(out, kind, 0, stream, &value.to_be_bytes());
}

/// Appends GOAWAY, RFC 9113 section 6.8.
pub fn write_goaway(out: &mut Vec<u8>, last: u32, code: ErrorCode) {
    let payload = (u64::from(last) << 32 | u64::from(code.0)).to_be_bytes();
    write(out, kind::GOAWAY, 0, 0, &payload);
}

/// Appends SETTINGS, RFC 9113 section 6.5.
pub fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(6 * settings.len());
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    write(out, kind::SETTINGS, 0, 0, &payload);
}

/// Iterates over the names and values of a SETTINGS payload, whose length is a multiple of six.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.chunks_exact(6).filter_map(|setting| {
        let (name, value) = setting.split_first_chunk::<2>()?;
        let value = value.first_chunk::<4>()?;
        Some((u16::from_be_bytes(*name), u32::from_be_bytes(*value)))
    })
}

/// Reads four bytes at `at` without the reserved first bit.
pub fn u31(payload: &[u8], at: usize) -> Option<u32> {
    u32_at(payload, at).map(|value| value & LOW_31_BITS)
}

/// Reads four bytes at `at`.
pub fn u32_at(payload: &[u8], at: usize) -> Option<u32> {
    let bytes = payload.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// Appends the field block that `write` appends, as HEADERS and, if too long for one frame,
/// CONTINUATION.
pub fn write_fields(out: &mut Vec<u8>, stream: u32, ends: bool, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    write(out);
    // The header goes in front of the block when its length is known: no second buffer for usual
    // heads.
    let length = out.len() - start - HEADER_BYTES;
    let mut flags = if ends { flag::END_STREAM } else { 0 };
    if length > MAX_PAYLOAD_BYTES {
        let block = out.split_off(start + HEADER_BYTES);
        out.truncate(start);
        let (mut kind, mut parts) = (kind::HEADERS, block.chunks(MAX_PAYLOAD_BYTES).peekable());
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            self::write(out, kind, flags, stream, part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
        return;
    }
    flags |= flag::END_HEADERS;
    let header = Frame {
        length,
        kind: kind::HEADERS,
        flags,
        stream,
    };
    header.write_at(out, start);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(mut bytes: &[u8]) -> Vec<Frame> {
        let mut all = Vec::new();
        while let Some(frame) = Frame::read(bytes) {
            bytes = &bytes[HEADER_BYTES + frame.length..];
            all.push(frame);
        }
        assert!(bytes.is_empty());
        all
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let frame = Frame {
            length: 0x01_02_03,
            kind: 9,
            flags: 0x25,
            stream: MAX_STREAM_ID,
        };
        assert_eq!(Frame::read(&frame.bytes()), Some(frame));
        assert_eq!(Frame::read(&frame.bytes()[..8]), None);
        let mut reserved = frame.bytes();
        reserved[5] |= 0x80;
        assert_eq!(Frame::read(&reserved), Some(frame), "the bit is ignored");
    }

    #[test]
    fn long_fields_are_continued() {
        for (length, kinds) in [
            (0, &[kind::HEADERS][..]),
            (MAX_PAYLOAD_BYTES, &[kind::HEADERS]),
            (MAX_PAYLOAD_BYTES + 1, &[kind::HEADERS, kind::CONTINUATION]),
            (
                40_000,
                &[kind::HEADERS, kind::CONTINUATION, kind::CONTINUATION],
            ),
        ] {
            let mut out = Vec::new();
            write_fields(&mut out, 7, true, |out| out.extend(vec![b'x'; length]));
            let frames = frames(&out);
            let found: Vec<u8> = frames.iter().map(|frame| frame.kind).collect();
            assert_eq!(found, kinds);
            assert_eq!(
                frames.iter().map(|frame| frame.length).sum::<usize>(),
                length
            );
            for (place, frame) in frames.iter().enumerate() {
                assert_eq!(frame.stream, 7);
                assert_eq!(frame.has(flag::END_STREAM), place == 0);
                assert_eq!(frame.has(flag::END_HEADERS), place + 1 == frames.len());
            }
        }
    }

    #[test]
    fn settings_come_back() {
        let list = [(1, 0), (0xffff, u32::MAX)];
        let mut out = Vec::new();
        write_settings(&mut out, &list);
        assert_eq!(settings(&out[HEADER_BYTES..]).collect::<Vec<_>>(), list);
    }
}
