//! A client that writes frames by hand.

use std::net::SocketAddr;

use crate::support::client::{Client, Cut};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const CALM: u32 = 11;

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a reset or a GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields without compression, RFC 7541 section 6.2.2.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127 + 128, "longer ones need more digits");
            if text.len() < 127 {
                block.push(text.len() as u8);
            } else {
                block.extend([127, (text.len() - 127) as u8]);
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

pub(crate) const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "test"),
];

pub(crate) struct Raw(pub Client);

impl Raw {
    /// Connects and says hello.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut client = Client::connect(address);
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.send(frame(SETTINGS, 0, 0, &[]));
        Self(client)
    }

    /// Sends; false when the connection is over.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.try_send(bytes)
    }

    /// A request without a body.
    pub(crate) fn ask(&mut self, stream: u32, list: &[(&str, &str)]) -> bool {
        self.send(frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &fields(list),
        ))
    }

    pub(crate) fn next(&mut self) -> Result<Frame, Cut> {
        let head = self.0.exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        Ok(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
            payload: self.0.exactly(length)?,
        })
    }

    /// Reads on to the first frame that `wanted` says.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().expect("the frame that is waited for");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The code of the GOAWAY that ends the connection.
    pub(crate) fn goodbye(&mut self) -> u32 {
        self.until(|frame| frame.kind == GOAWAY).code()
    }
}
