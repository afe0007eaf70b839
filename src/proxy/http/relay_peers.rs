//! Both ends of a relay in tests: peers that send or receive a body, and our sides of their
//! connections.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    rc::Rc,
    task::{Context, Poll},
};

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::super::{BodySink, BodySource};
use crate::{
    base::rng::Random,
    h2::{connection::Connection, stream::H2Stream},
    http::{
        head_writer::HeadWriter as _,
        message::Trailers,
        rules::{HeadLimits, RESPONSE_LIMITS},
    },
    http1::body::{BodyDecoder, BodyStep},
    http2::{
        frame::{
            CLIENT_PREFACE, Frame, HEADER_BYTES, flag, kind, setting, write, write_fields,
            write_settings, write_u32,
        },
        hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits},
    },
    net::{driver::end_turn, stream::Stream},
};

/// Stream of the only request.
pub(super) const STREAM_ID: u32 = 1;
/// Bytes that an HTTP/1 sink gets before the body.
pub(super) const HEAD: &[u8] = b"head of a message";
const HEAD_LIMITS: HeadLimits = HeadLimits {
    fields: 40,
    bytes: 8 << 10,
};

/// Appends the head of a request.
pub(super) fn request_frames(out: &mut Vec<u8>, length: Option<usize>, ends: bool) {
    let length = length.map(|length| length.to_string());
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    fields.extend(length.iter().map(|length| ("content-length", &**length)));
    block_frames(out, &fields, ends);
}

/// Appends a field block.
pub(super) fn block_frames(out: &mut Vec<u8>, fields: &[(&str, &str)], ends: bool) {
    write_fields(out, STREAM_ID, ends, |out| {
        for (name, value) in fields {
            HpackEncoder::default().field(out, name.as_bytes(), value.as_bytes());
        }
    });
}

/// Appends DATA, sometimes padded.
pub(super) fn data_frame(out: &mut Vec<u8>, content: &[u8], ends: bool, random: &mut Random) {
    let flags = if ends { flag::END_STREAM } else { 0 };
    if random.below(4) > 0 {
        return write(out, kind::DATA, flags, STREAM_ID, content);
    }
    let padding = random.below(9);
    let payload = [&[padding as u8], content, &vec![0; padding]].concat();
    write(out, kind::DATA, flags | flag::PADDED, STREAM_ID, &payload);
}

/// Our side of a connection.
pub(super) enum OwnSide {
    H1(Stream),
    H2(Rc<Connection>, H2Stream),
}

impl OwnSide {
    pub(super) fn source(&mut self) -> BodySource<'_> {
        match self {
            Self::H1(stream) => BodySource::H1(stream),
            Self::H2(_, stream) => BodySource::H2(stream),
        }
    }

    pub(super) fn sink(&mut self) -> BodySink<'_> {
        match self {
            Self::H1(stream) => BodySink::H1(stream),
            Self::H2(_, stream) => BodySink::H2(stream),
        }
    }

    /// Moves frames as far as possible.
    pub(super) fn drive(&self, cx: &mut Context<'_>) {
        if let Self::H2(connection, _) = self {
            let polled = connection.poll(cx);
            assert!(!matches!(polled, Poll::Ready(Some(_))), "one request");
        }
    }
}

/// Other end of a connection.
pub(super) struct Peer {
    /// `None` once it is closed.
    socket: Option<UnixStream>,
    /// Bytes to send.
    pub(super) out: Vec<u8>,
    /// It ends its side behind them.
    pub(super) ends: bool,
    pub(super) received: Vec<u8>,
    /// The frames in what was received, over HTTP/2.
    pub(super) frames: Option<FrameReader>,
}

impl Peer {
    fn pair(random: &mut Random) -> (Self, Stream) {
        let (socket, own) = UnixStream::pair().unwrap();
        for end in [&socket, &own] {
            end.set_nonblocking(true).unwrap();
        }
        if random.below(2) == 0 {
            set_socket_send_buffer_size(&own, 2_000 << random.below(6)).unwrap();
        }
        let own = Stream::from(tokio::net::UnixStream::from_std(own).unwrap());
        let peer = Self {
            socket: Some(socket),
            out: Vec::new(),
            ends: false,
            received: Vec::new(),
            frames: None,
        };
        (peer, own)
    }

    /// Makes a peer that speaks HTTP/1.
    pub(super) fn of_http1(random: &mut Random) -> (Self, OwnSide) {
        let (peer, own) = Self::pair(random);
        (peer, OwnSide::H1(own))
    }

    /// Makes a client that speaks HTTP/2, which has sent `request`, and whose streams have this
    /// window.
    pub(super) fn of_http2(window: u32, request: &[u8], random: &mut Random) -> (Self, OwnSide) {
        let (mut peer, own) = Self::pair(random);
        let mut read = CLIENT_PREFACE.to_vec();
        write_settings(&mut read, &[(setting::INITIAL_WINDOW_SIZE, window)]);
        read.extend_from_slice(request);
        let connection = Connection::of_client(own, &read, HEAD_LIMITS, 10);
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Some(request)) = connection.poll(cx) else {
            panic!("no request");
        };
        assert_eq!(request.refusal, None);
        let stream = H2Stream::of_request(&connection, &request);
        peer.frames = Some(FrameReader::default());
        (peer, OwnSide::H2(connection, stream))
    }

    /// Makes a client that speaks HTTP/2, whose response has begun.
    pub(super) fn of_http2_sink(window: u32, random: &mut Random) -> (Self, OwnSide) {
        let mut request = Vec::new();
        request_frames(&mut request, None, true);
        let (peer, own) = Self::of_http2(window, &request, random);
        if let OwnSide::H2(_, stream) = &own {
            let head = stream.send_head(false, |block| block.status_line(200, b""));
            head.unwrap();
        }
        (peer, own)
    }

    /// Sends at most `most` bytes, and ends its side behind the last ones.
    pub(super) fn send(&mut self, most: usize) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let part = &self.out[..most.min(self.out.len())];
        match socket.write(part) {
            Ok(count) => drop(self.out.drain(..count)),
            // The relay may have failed, and its side is closed.
            Err(error) => assert!(
                [ErrorKind::WouldBlock, ErrorKind::BrokenPipe].contains(&error.kind()),
                "{error}"
            ),
        }
        if self.out.is_empty() && std::mem::take(&mut self.ends) {
            socket.shutdown(Shutdown::Write).unwrap();
        }
    }

    /// Receives at most `most` bytes; false if there is nothing, or no more.
    pub(super) fn receive(&mut self, most: usize) -> bool {
        let Some(socket) = &mut self.socket else {
            return false;
        };
        // What the other side has sent is there.
        end_turn();
        let mut buffer = vec![0; most];
        let Ok(count @ 1..) = socket.read(&mut buffer) else {
            return false;
        };
        self.received.extend_from_slice(&buffer[..count]);
        if let Some(frames) = &mut self.frames {
            frames.read(&self.received);
        }
        true
    }

    /// Opens the windows for some of what was received.
    pub(super) fn open_windows(&mut self, random: &mut Random) {
        let Some(frames) = &mut self.frames else {
            return;
        };
        let more = random.below(frames.owed as usize + 1) as u32;
        if more > 0 {
            frames.owed -= more;
            for id in [0, STREAM_ID] {
                write_u32(&mut self.out, kind::WINDOW_UPDATE, id, more);
            }
        }
    }

    /// Leaves without a word.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    /// Body that the sink has, once its connection is over.
    pub(super) fn body(&self, is_chunked: bool) -> ReceivedBody {
        if let Some(frames) = &self.frames {
            return ReceivedBody {
                content: frames.content.clone(),
                trailers: frames.trailers.clone(),
                has_end: frames.has_end,
            };
        }
        let body = self.received.strip_prefix(HEAD);
        // A head that is cut has no body.
        let body = body.unwrap_or_default();
        if is_chunked {
            return decode(body);
        }
        ReceivedBody {
            content: body.to_vec(),
            ..ReceivedBody::default()
        }
    }
}

/// Body as its recipient reads it.
#[derive(Debug, Default)]
pub(super) struct ReceivedBody {
    pub(super) content: Vec<u8>,
    pub(super) trailers: Trailers,
    /// The mark of its end was received, if it has one.
    pub(super) has_end: bool,
}

/// Decodes chunks.
fn decode(mut chunks: &[u8]) -> ReceivedBody {
    let mut body = ReceivedBody::default();
    let mut decoder = BodyDecoder::chunked(RESPONSE_LIMITS);
    loop {
        match decoder.step(chunks).expect("chunks of ours") {
            BodyStep::Data(count) => {
                body.content.extend_from_slice(&chunks[..count]);
                chunks = &chunks[count..];
            }
            BodyStep::Skip(count) => chunks = &chunks[count..],
            BodyStep::More => return body,
            BodyStep::End => break,
        }
    }
    assert!(chunks.is_empty(), "bytes behind the end");
    body.trailers = decoder.take_trailers();
    body.has_end = true;
    body
}

/// Frames of a response that were received.
#[derive(Default)]
pub(super) struct FrameReader {
    /// Bytes of complete frames.
    place: usize,
    decoder: HpackDecoder,
    has_head: bool,
    pub(super) content: Vec<u8>,
    trailers: Trailers,
    pub(super) has_end: bool,
    /// Lengths of the DATA frames, and if each ends the stream.
    pub(super) data: Vec<(usize, bool)>,
    is_reset: bool,
    /// Content for which no window was opened yet.
    owed: u32,
}

impl FrameReader {
    fn read(&mut self, received: &[u8]) {
        while let Some(frame) = Frame::read(&received[self.place..])
            && let start = self.place + HEADER_BYTES
            && let Some(payload) = received.get(start..start + frame.length)
        {
            self.place = start + frame.length;
            self.frame(frame, payload);
        }
    }

    fn frame(&mut self, frame: Frame, payload: &[u8]) {
        let ends = frame.has(flag::END_STREAM);
        match frame.kind {
            kind::DATA | kind::HEADERS => {
                assert!(!self.has_end && !self.is_reset, "{frame:?} behind the end");
                assert_eq!(frame.stream, STREAM_ID);
                self.has_end = ends;
            }
            kind::RST_STREAM => {
                assert!(!self.has_end, "a reset behind the end");
                self.is_reset = true;
            }
            _ => {}
        }
        match frame.kind {
            kind::DATA => {
                assert!(self.has_head);
                self.content.extend_from_slice(payload);
                self.data.push((payload.len(), ends));
                self.owed += payload.len() as u32;
            }
            kind::HEADERS if std::mem::replace(&mut self.has_head, true) => {
                assert!(ends && frame.has(flag::END_HEADERS));
                for (name, value) in self.fields(payload).iter() {
                    self.trailers.push(name, value);
                }
            }
            kind::HEADERS => drop(self.fields(payload)),
            _ => {}
        }
    }

    fn fields(&mut self, block: &[u8]) -> FieldList {
        let mut fields = FieldList::default();
        let limits = SizeLimits {
            kept: 1 << 16,
            decoded: 1 << 16,
        };
        self.decoder.decode(block, limits, &mut fields).unwrap();
        fields
    }
}
