//! Frames of HTTP/2 written and read by hand, for peers that do what no library would.

use super::{
    client::{HttpClient, ReadError},
    peer::PeerConnection,
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// First bytes of a client, RFC 9113 section 3.4.
pub const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The fields of a request.
pub const GET_FIELDS: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "test"),
];

/// One frame.
#[derive(Debug)]
pub struct RawFrame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// The error code of a reset or a GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Reads one by `exactly`, which reads that number of bytes.
    pub fn read<E>(mut exactly: impl FnMut(usize) -> Result<Vec<u8>, E>) -> Result<Self, E> {
        let head = exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        Ok(Self {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
            payload: exactly(length)?,
        })
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A GOAWAY that says that streams up to `last` were taken.
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
    frame(GOAWAY, 0, 0, &payload)
}

/// Fields without compression, RFC 7541 section 6.2.2.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            number(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A number behind a prefix of one bit, RFC 7541 section 5.1.
fn number(block: &mut Vec<u8>, value: usize) {
    if value < 127 {
        return block.push(value as u8);
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(rest as u8 | 128);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A field block in frames of at most `size` bytes, the first with `flags`.
pub fn head(flags: u8, stream: u32, block: &[u8], size: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    let count = block.chunks(size).count();
    for (place, part) in block.chunks(size).enumerate() {
        let (kind, own) = if place == 0 {
            (HEADERS, flags)
        } else {
            (CONTINUATION, 0)
        };
        let last = if place + 1 == count { END_HEADERS } else { 0 };
        frames.extend(frame(kind, own | last, stream, part));
    }
    frames
}

/// A client that writes frames by hand.
pub struct RawH2Client(pub HttpClient);

impl RawH2Client {
    /// Connects, and sends preface and settings.
    pub fn connect(address: std::net::SocketAddr) -> Self {
        let mut client = HttpClient::connect(address);
        client.send(PREFACE);
        client.send(frame(SETTINGS, 0, 0, &[]));
        Self(client)
    }

    /// Sends; false when the connection is over.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.try_send(bytes)
    }

    /// A request without a body.
    pub fn ask(&mut self, stream: u32, list: &[(&str, &str)]) -> bool {
        self.send(frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &fields(list),
        ))
    }

    pub fn next(&mut self) -> Result<RawFrame, ReadError> {
        RawFrame::read(|length| self.0.exactly(length))
    }

    /// Reads on to the first frame that `wanted` says.
    pub fn until(&mut self, mut wanted: impl FnMut(&RawFrame) -> bool) -> RawFrame {
        loop {
            let frame = self.next().expect("the frame that is waited for");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Sends `frame` until the connection ends, at most `limit` times; gives the code of the
    /// GOAWAY.
    ///
    /// It stops at the GOAWAY, because the daemon goes on reading for seconds behind it.
    pub fn flood(&mut self, frame: &[u8], limit: usize) -> u32 {
        const BATCH: usize = 1_000;
        let batch = frame.repeat(BATCH);
        for _ in 0..limit.div_ceil(BATCH) {
            if !self.send(&batch) {
                break;
            }
            while self.0.has_input() {
                let frame = self.next().expect("a frame that has begun");
                if frame.kind == GOAWAY {
                    return frame.code();
                }
            }
        }
        self.goodbye()
    }

    /// The code of the GOAWAY that ends the connection.
    pub fn goodbye(&mut self) -> u32 {
        self.until(|frame| frame.kind == GOAWAY).code()
    }
}

/// A backend that writes frames by hand.
pub struct RawH2Backend(pub PeerConnection);

impl RawH2Backend {
    /// Takes the preface of a connection and sends empty settings; `None` if that ends before.
    pub fn greet(connection: PeerConnection) -> Option<Self> {
        Self::greet_with(connection, &[])
    }

    /// The same with settings, RFC 9113 section 6.5.1.
    pub fn greet_with(mut connection: PeerConnection, settings: &[(u16, u32)]) -> Option<Self> {
        assert_eq!(connection.exactly(PREFACE.len())?, PREFACE.as_bytes());
        let mut payload = Vec::new();
        for (key, value) in settings {
            payload.extend(key.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        connection.send(frame(SETTINGS, 0, 0, &payload));
        Some(Self(connection))
    }

    /// Sends; false when the connection is over.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.send(bytes)
    }

    pub fn next(&mut self) -> Option<RawFrame> {
        RawFrame::read(|length| self.0.exactly(length).ok_or(())).ok()
    }

    /// Reads on to the first frame that `wanted` says; `None` when the connection ends before.
    pub fn until(&mut self, wanted: impl Fn(&RawFrame) -> bool) -> Option<RawFrame> {
        loop {
            let frame = self.next()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The stream of the next request.
    pub fn asked(&mut self) -> Option<u32> {
        Some(self.until(|frame| frame.kind == HEADERS)?.stream)
    }

    /// A head, which may be the end.
    pub fn head(&mut self, stream: u32, list: &[(&str, &str)], ends: bool) -> bool {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.send(frame(HEADERS, flags, stream, &fields(list)))
    }

    /// A whole response.
    pub fn answer(&mut self, stream: u32, body: &str) -> bool {
        self.head(stream, &[(":status", "200")], false)
            && self.send(frame(DATA, END_STREAM, stream, body.as_bytes()))
    }

    pub fn reset(&mut self, stream: u32, code: u32) -> bool {
        self.send(frame(RST_STREAM, 0, stream, &code.to_be_bytes()))
    }
}
