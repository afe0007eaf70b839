//! Received message of one stream: its heads, content and trailers as far as they are unread.

use std::{collections::VecDeque, mem};

use super::{StreamError, spare};
use crate::http::{
    fields::HeadField,
    message::{BodyFraming, ResponseHead, Trailers},
};

/// Capacity that is kept for content after all of it was read.
const KEPT_CONTENT_BYTES: usize = 64 << 10;
/// Memory of unread interim heads per stream. They are limited by no window, so a backend could
/// send them for ever.
const MAX_INTERIM_BYTES: usize = 256 << 10;

/// Progress of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecvPhase {
    /// The final head was not received.
    Head,
    Content,
    /// The whole message was received.
    Ended,
}

/// Unread part of a message.
#[derive(Debug)]
pub(super) struct RecvBuffer {
    phase: RecvPhase,
    /// Heads of responses. A request's head goes to its exchange at once.
    interim: VecDeque<ResponseHead>,
    /// Memory of `interim`.
    interim_bytes: usize,
    head: Option<ResponseHead>,
    /// Content may follow the head; otherwise it is discarded.
    has_content: bool,
    /// Content, which still occupies the receive windows.
    content: VecDeque<u8>,
    /// Declared bytes that are still expected.
    length: Option<u64>,
    trailers: Trailers,
    /// Set if the message is cut though its stream ends properly.
    failure: Option<StreamError>,
}

impl RecvBuffer {
    /// Creates an empty buffer.
    pub(super) const fn new() -> Self {
        Self {
            phase: RecvPhase::Head,
            interim: VecDeque::new(),
            interim_bytes: 0,
            head: None,
            has_content: false,
            content: VecDeque::new(),
            length: None,
            trailers: Trailers::new(),
            failure: None,
        }
    }

    /// Notes that the final head was received, and the framing of the content after it. A tunnel
    /// has content of any length.
    pub(super) fn begin_content(&mut self, framing: BodyFraming, is_tunnel: bool) {
        self.phase = RecvPhase::Content;
        self.has_content = is_tunnel || matches!(framing, BodyFraming::Streamed(_));
        self.length = framing.declared_length().filter(|_| self.has_content);
    }

    /// Adds a response head. False: the unread interim heads exceed their limit.
    pub(super) fn push_head(&mut self, head: ResponseHead) -> bool {
        if !head.is_interim() {
            self.begin_content(head.framing, head.status == 101);
            self.head = Some(head);
            return true;
        }
        self.interim_bytes += memory(&head);
        self.interim.push_back(head);
        self.interim_bytes <= MAX_INTERIM_BYTES
    }

    /// Moves the next unread head into `head`; false if there is none.
    pub(super) fn read_head(&mut self, head: &mut ResponseHead) -> bool {
        let next = self.interim.pop_front();
        if let Some(interim) = &next {
            self.interim_bytes -= memory(interim);
        }
        let Some(mut next) = next.or_else(|| self.head.take()) else {
            return false;
        };
        mem::swap(head, &mut next);
        spare::put_response(next);
        true
    }

    /// True once the final head was received.
    pub(super) fn has_head(&self) -> bool {
        self.phase != RecvPhase::Head
    }

    /// Appends content. False: more than was declared, which is request smuggling if passed on.
    pub(super) fn push_content(&mut self, bytes: &[u8]) -> bool {
        if let Some(length) = &mut self.length {
            match length.checked_sub(bytes.len() as u64) {
                Some(left) => *length = left,
                None => return false,
            }
        }
        if self.content.capacity() == 0 && !bytes.is_empty() {
            self.content = spare::take_content();
        }
        self.content.extend(bytes);
        true
    }

    /// Ends the message. False: less content than was declared.
    pub(super) fn finish(&mut self, trailers: Trailers) -> bool {
        let is_whole = self.length.unwrap_or(0) == 0;
        if is_whole {
            self.trailers = trailers;
            self.phase = RecvPhase::Ended;
        }
        is_whole
    }

    /// Cuts the message: it is read up to here and then fails with `why`.
    pub(super) fn fail(&mut self, why: StreamError) {
        self.failure = Some(why);
    }

    /// Error that cuts the message.
    pub(super) const fn failure(&self) -> Option<StreamError> {
        self.failure
    }

    /// True if the message has content; otherwise it is discarded.
    pub(super) const fn expects_content(&self) -> bool {
        self.has_content
    }

    /// Unread content bytes.
    pub(super) fn unread_content(&self) -> usize {
        self.content.len()
    }

    /// True if no more content will be received.
    pub(super) fn is_finished(&self) -> bool {
        match self.phase {
            RecvPhase::Head => false,
            RecvPhase::Content => !self.has_content,
            RecvPhase::Ended => true,
        }
    }

    /// Gives at most `most` bytes of content to `take`, in one or two parts; returns how many.
    pub(super) fn read_content(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> usize {
        let count = self.content.len().min(most);
        let (front, back) = self.content.as_slices();
        let of_front = front.get(..count).unwrap_or(front);
        let of_back = back.get(..count - of_front.len());
        debug_assert!(of_back.is_some(), "both parts are the whole content");
        take(of_front);
        take(of_back.unwrap_or_default());
        self.content.drain(..count);
        if self.content.is_empty() {
            self.content.clear();
            self.content.shrink_to(KEPT_CONTENT_BYTES);
        }
        count
    }

    /// Takes the trailers of a message that has ended.
    pub(super) fn take_trailers(&mut self) -> Trailers {
        mem::take(&mut self.trailers)
    }
}

/// Memory of a head; most of a short one is not its text.
fn memory(head: &ResponseHead) -> usize {
    let fields = head.fields.iter().count() * size_of::<HeadField>();
    size_of::<ResponseHead>() + head.bytes.capacity() + fields
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        spare::put_content(mem::take(&mut self.content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Random;

    fn of_length(length: Option<u64>) -> RecvBuffer {
        let mut recv_buffer = RecvBuffer::new();
        recv_buffer.begin_content(BodyFraming::Streamed(length), false);
        recv_buffer
    }

    #[test]
    fn any_order_of_frames_and_reads_gives_the_same_content() {
        let mut random = Random::seeded(12);
        for round in 0..3_000 {
            let sent: Vec<u8> = (0..random.below(3_000))
                .map(|_| random.bits() as u8)
                .collect();
            let mut recv_buffer = of_length((round % 3 == 0).then_some(sent.len() as u64));
            let mut trailers = Trailers::new();
            trailers.push(b"x", b"y");
            let (mut rest, mut read) = (&sent[..], Vec::new());
            while !recv_buffer.is_finished() || recv_buffer.unread_content() > 0 {
                if random.below(2) == 0 && !recv_buffer.is_finished() {
                    let (now, later) = rest.split_at(random.below(rest.len() + 1).min(700));
                    assert!(recv_buffer.push_content(now));
                    rest = later;
                    if rest.is_empty() {
                        assert!(recv_buffer.finish(trailers.clone()));
                    }
                }
                let before = read.len();
                let most = random.below(500);
                let count = recv_buffer.read_content(most, |part| read.extend_from_slice(part));
                assert_eq!(read.len(), before + count);
            }
            assert_eq!(read, sent);
            assert_eq!(recv_buffer.take_trailers(), trailers);
        }
    }

    #[test]
    fn a_length_is_kept_exactly() {
        for (came, good_push, good_end) in [(3, true, false), (4, true, true), (5, false, true)] {
            let mut recv_buffer = of_length(Some(4));
            assert_eq!(recv_buffer.push_content(&vec![0; came]), good_push);
            if good_push {
                assert_eq!(recv_buffer.finish(Trailers::new()), good_end);
                assert_eq!(recv_buffer.is_finished(), good_end, "a cut is no end");
            }
        }
    }

    #[test]
    fn heads_are_read_in_order_and_interim_ones_are_bounded() {
        let interim = |length| ResponseHead {
            status: 103,
            bytes: vec![0; length],
            ..ResponseHead::default()
        };
        let mut recv_buffer = RecvBuffer::new();
        for length in [1, 2] {
            assert!(recv_buffer.push_head(interim(length)));
        }
        let last = ResponseHead {
            status: 200,
            ..ResponseHead::default()
        };
        assert!(recv_buffer.push_head(last));
        let mut head = ResponseHead::default();
        let mut read = Vec::new();
        while recv_buffer.read_head(&mut head) {
            read.push((head.status, head.bytes.len()));
        }
        assert_eq!(read, [(103, 1), (103, 2), (200, 0)]);
        let mut recv_buffer = RecvBuffer::new();
        for _ in 0..4 {
            let length = MAX_INTERIM_BYTES / 4 - size_of::<ResponseHead>();
            assert!(recv_buffer.push_head(interim(length)));
        }
        assert!(!recv_buffer.push_head(interim(1)));
        let mut recv_buffer = RecvBuffer::new();
        let count = (0..MAX_INTERIM_BYTES)
            .take_while(|_| recv_buffer.push_head(interim(0)))
            .count();
        assert!(count * size_of::<ResponseHead>() <= MAX_INTERIM_BYTES);
    }
}
