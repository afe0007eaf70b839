//! Bodies of the tests of a relay: how they are sent, what is wrong with them, and where they go.

use super::{
    super::BodyRelayError,
    peers::{STREAM_ID, block_frames, data_frame},
};
use crate::{
    base::rng::Random,
    http::message::Trailers,
    http2::frame::{ErrorCode, INITIAL_WINDOW, kind, write_u32},
};

/// Trailers that a source sends.
pub(super) const TRAILERS: [(&str, &str); 6] = [
    ("x-sum", "1"),
    ("grpc-status", "0"),
    ("content-length", "9"),
    ("x-forwarded-for", "192.0.2.7"),
    ("client-subject", "CN=a"),
    ("client_subject", "CN=a"),
];
/// Name of trailers that a relay forbids.
pub(super) const FORBIDDEN: &str = "Client-Subject";
/// Bytes that an HTTP/1 peer sends behind its message.
pub(super) const BEHIND: &[u8] = b"the next message";

/// Source of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceKind {
    Length,
    Chunked,
    UntilClose,
    Frames,
    /// Its length is declared as well.
    DeclaredFrames,
}

/// Sink of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SinkKind {
    Plain,
    /// Of a length that was announced.
    Announced,
    Chunked,
    Frames,
}

/// Fault of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceFault {
    /// It closes its connection.
    Closed,
    /// It sends something that is not valid.
    Malformed,
    /// It resets the stream.
    Reset,
}

/// One body, and what happens to it.
#[derive(Debug)]
pub(super) struct BodyCase {
    pub(super) source: SourceKind,
    pub(super) content: Vec<u8>,
    pub(super) trailers: Vec<(&'static str, &'static str)>,
    pub(super) fault: Option<SourceFault>,
    pub(super) limit: Option<u64>,
    pub(super) is_filtered: bool,
    /// Sinks that get the body one after the other, the last one first.
    pub(super) sinks: Vec<SinkKind>,
    /// Bytes that the first sink receives before it leaves.
    pub(super) leaves_at: Option<usize>,
    pub(super) may_splice: bool,
    /// Window of an HTTP/2 sink.
    pub(super) window: u32,
}

pub(super) fn choose<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len())]
}

pub(super) fn is_one_in(random: &mut Random, count: usize) -> bool {
    random.below(count) == 0
}

impl SourceKind {
    pub(super) const ALL: [Self; 5] = [
        Self::Length,
        Self::Chunked,
        Self::UntilClose,
        Self::Frames,
        Self::DeclaredFrames,
    ];

    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::Frames | Self::DeclaredFrames)
    }

    /// Sinks to which the proxy sends such a body.
    pub(super) fn sinks(self) -> &'static [SinkKind] {
        use SinkKind::{Announced, Chunked, Frames, Plain};
        match self {
            Self::DeclaredFrames => &[Announced, Chunked, Frames],
            _ => &[Plain, Chunked, Frames],
        }
    }

    /// The error of a relay after `fault`.
    pub(super) fn is_error(self, fault: SourceFault, error: &BodyRelayError) -> bool {
        match (self.is_http2(), fault) {
            (true, _) => matches!(error, BodyRelayError::Read(_)),
            (false, SourceFault::Closed) => matches!(error, BodyRelayError::Cut),
            (false, _) => matches!(error, BodyRelayError::Malformed(_)),
        }
    }
}

impl BodyCase {
    /// A case without faults.
    pub(super) fn plain(source: SourceKind, sink: SinkKind, length: usize) -> Self {
        Self {
            source,
            content: (0..length).map(|place| (place / 3) as u8).collect(),
            trailers: Vec::new(),
            fault: None,
            limit: None,
            is_filtered: false,
            sinks: vec![sink],
            leaves_at: None,
            may_splice: false,
            window: INITIAL_WINDOW,
        }
    }

    pub(super) fn random(random: &mut Random) -> Self {
        use SourceFault::{Closed, Malformed, Reset};
        use SourceKind::{Chunked, DeclaredFrames, Frames, Length, UntilClose};
        let source = choose(random, &SourceKind::ALL);
        let most = choose(random, &[0, 1, 100, 5_000, 60_000, 150_000]);
        let may_splice = is_one_in(random, 4);
        let is_long = may_splice && source == Length && is_one_in(random, 4);
        let length = if is_long {
            300_000
        } else {
            most.min(random.below(2 * most + 1))
        };
        let has_trailers = !matches!(source, Length | UntilClose) && is_one_in(random, 2);
        let faults: &[SourceFault] = match source {
            Length if length > 0 => &[Closed],
            Length | UntilClose => &[],
            Chunked => &[Closed, Malformed],
            Frames => &[Closed, Reset],
            DeclaredFrames => &[Closed, Malformed, Reset],
        };
        let is_faulty = !faults.is_empty() && is_one_in(random, 4);
        let limit = [length.saturating_sub(1), length, 2 * length][random.below(3)];
        let count = if may_splice { 1 } else { 1 + random.below(3) };
        Self {
            source,
            content: (0..length).map(|_| random.bits() as u8).collect(),
            trailers: TRAILERS
                .into_iter()
                .filter(|_| has_trailers && is_one_in(random, 2))
                .collect(),
            fault: is_faulty.then(|| choose(random, faults)),
            limit: (!is_faulty && is_one_in(random, 4)).then_some(limit as u64),
            is_filtered: is_one_in(random, 3),
            sinks: (0..count).map(|_| choose(random, source.sinks())).collect(),
            leaves_at: is_one_in(random, 6).then(|| random.below(length + 1)),
            may_splice,
            window: choose(random, &[1_000, 20_000, INITIAL_WINDOW, 1 << 20]),
        }
    }

    /// The trailers that a sink of `kind` gets.
    pub(super) fn passed_trailers(&self, kind: SinkKind) -> Trailers {
        let mut trailers = Trailers::new();
        if matches!(kind, SinkKind::Chunked | SinkKind::Frames) {
            for (name, value) in &self.trailers {
                if ["x-sum", "grpc-status"].contains(name) {
                    trailers.push(name.as_bytes(), value.as_bytes());
                }
            }
        }
        trailers
    }

    /// True if more is sent than the relay may accept.
    pub(super) fn is_too_large(&self) -> bool {
        self.limit
            .is_some_and(|limit| limit < self.content.len() as u64)
    }

    /// Content in random parts.
    fn parts<'c>(&'c self, random: &mut Random) -> Vec<&'c [u8]> {
        let most = choose(random, &[1 + self.content.len() / 20, 100_000]);
        let (mut rest, mut parts) = (&self.content[..], Vec::new());
        while !rest.is_empty() {
            let count = (1 + random.below(most)).min(rest.len()).min(16_000);
            let (part, behind) = rest.split_at(count);
            parts.push(part);
            rest = behind;
        }
        parts
    }

    /// Bytes that an HTTP/1 source sends, and true if it ends its side behind them.
    pub(super) fn bytes(&self, random: &mut Random) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        if self.source == SourceKind::Chunked {
            let parts = self.parts(random);
            let broken =
                (self.fault == Some(SourceFault::Malformed)).then(|| random.below(parts.len() + 1));
            for (place, part) in parts.iter().enumerate() {
                if broken == Some(place) {
                    break;
                }
                let extension = choose(random, &["", ";a=b"]);
                out.extend_from_slice(format!("{:X}{extension}\r\n", part.len()).as_bytes());
                out.extend_from_slice(part);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(if broken.is_some() { b"z" } else { b"0\r\n" });
            for (name, value) in &self.trailers {
                out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(&self.content);
        }
        if self.fault == Some(SourceFault::Closed) {
            out.truncate(random.below(out.len()));
            return (out, true);
        }
        if self.source == SourceKind::UntilClose {
            return (out, true);
        }
        if is_one_in(random, 3) {
            out.extend_from_slice(BEHIND);
        }
        (out, is_one_in(random, 2))
    }

    /// Frames that an HTTP/2 source sends, and true if it ends its side behind them.
    pub(super) fn frames(&self, random: &mut Random) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let parts = self.parts(random);
        let fault_at = self.fault.map(|_| random.below(parts.len() + 1));
        let is_in_last = self.trailers.is_empty() && is_one_in(random, 2);
        for (place, part) in parts.iter().enumerate() {
            if fault_at == Some(place) {
                break;
            }
            let ends = is_in_last && fault_at.is_none() && place + 1 == parts.len();
            data_frame(&mut out, part, ends, random);
        }
        match self.fault {
            Some(SourceFault::Closed) => {
                out.truncate(random.below(out.len() + 1));
                return (out, true);
            }
            Some(SourceFault::Reset) => {
                write_u32(&mut out, kind::RST_STREAM, STREAM_ID, ErrorCode::CANCEL.0);
            }
            // Less than was declared, or more.
            Some(SourceFault::Malformed) if fault_at < Some(parts.len()) => {
                data_frame(&mut out, b"", true, random);
            }
            Some(SourceFault::Malformed) => data_frame(&mut out, b"more", true, random),
            None if !self.trailers.is_empty() => block_frames(&mut out, &self.trailers, true),
            None if is_in_last && !parts.is_empty() => {}
            None => data_frame(&mut out, b"", true, random),
        }
        (out, is_one_in(random, 2))
    }
}
