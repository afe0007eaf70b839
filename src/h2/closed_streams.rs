//! Streams that were reset while frames for them may still arrive (RFC 9113 section 5.1, "closed").

use std::collections::VecDeque;

/// Ranges that are kept at least, however few streams a connection may have.
const MIN_RANGES: usize = 256;

/// Bit of a range that the peer has reset; stream ids have 31 bits.
const BY_PEER: u32 = 1 << 31;

/// Sender of the RST_STREAM that closed a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetBy {
    /// We sent it: frames that the peer sent before it arrived are no fault.
    Us,
    /// The peer sent it: frames behind it are an error.
    Peer,
}

/// Streams reset last, as ranges of ids: streams that are reset in order form one range.
#[derive(Debug)]
pub(super) struct ClosedStreams {
    /// First and last id of each range, in the order of closing; [`BY_PEER`] is a bit of both.
    ranges: VecDeque<(u32, u32)>,
    max_ranges: usize,
}

impl ClosedStreams {
    /// Creates the list for at most `streams` concurrent streams: within a round trip that many may
    /// be closed, and those that took their place.
    pub(super) fn new(streams: usize) -> Self {
        Self {
            ranges: VecDeque::new(),
            max_ranges: (2 * streams).max(MIN_RANGES),
        }
    }

    pub(super) fn insert(&mut self, id: u32, by: ResetBy) {
        let id = match by {
            ResetBy::Us => id,
            ResetBy::Peer => id | BY_PEER,
        };
        if let Some((_, last)) = self.ranges.back_mut()
            && last.checked_add(2) == Some(id)
        {
            *last = id;
            return;
        }
        if self.ranges.len() == self.max_ranges {
            self.ranges.pop_front();
        }
        self.ranges.push_back((id, id));
    }

    /// The sender of the last RST_STREAM of stream `id`; `None` if there was none, or too long ago.
    pub(super) fn reset_by(&self, id: u32) -> Option<ResetBy> {
        let mut ranges = self.ranges.iter().rev();
        ranges.find_map(|(first, last)| {
            let is_in = |id: u32| (*first..=*last).contains(&id);
            if is_in(id) {
                Some(ResetBy::Us)
            } else {
                is_in(id | BY_PEER).then_some(ResetBy::Peer)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_as_many_streams_are_known_as_there_can_be_at_a_time_and_no_more() {
        for (streams, kept) in [(1, 256), (100, 256), (1_000, 2_000)] {
            let mut closed = ClosedStreams::new(streams);
            // No two of them are neighbours.
            let ids: Vec<u32> = (0..3_000).map(|index| 4 * index + 1).collect();
            for id in &ids {
                closed.insert(*id, ResetBy::Us);
            }
            let known = ids
                .iter()
                .filter(|id| closed.reset_by(**id).is_some())
                .count();
            assert_eq!(known, kept);
            assert_eq!(closed.reset_by(ids[2_999]), Some(ResetBy::Us));
            assert_eq!(closed.reset_by(ids[0]), None);
            assert_eq!(closed.ranges.len(), kept);
        }
    }

    #[test]
    fn streams_that_are_closed_in_order_form_one_range() {
        let mut closed = ClosedStreams::new(100);
        (1..200_000)
            .step_by(2)
            .for_each(|id| closed.insert(id, ResetBy::Us));
        assert_eq!(
            [1, 199_999, 200_001].map(|id| closed.reset_by(id)),
            [Some(ResetBy::Us), Some(ResetBy::Us), None]
        );
        assert_eq!(closed.ranges.len(), 1);
    }

    #[test]
    fn the_last_reset_of_a_stream_counts() {
        let (us, peer) = (Some(ResetBy::Us), Some(ResetBy::Peer));
        let mut closed = ClosedStreams::new(100);
        closed.insert(1, ResetBy::Peer);
        closed.insert(3, ResetBy::Peer);
        closed.insert(5, ResetBy::Us);
        assert_eq!(closed.ranges.len(), 2);
        assert_eq!([1, 3, 5].map(|id| closed.reset_by(id)), [peer, peer, us]);
        // Frames behind the peer's reset are answered once: our own follows.
        closed.insert(3, ResetBy::Us);
        assert_eq!([1, 3, 5].map(|id| closed.reset_by(id)), [peer, us, us]);
        assert_eq!(closed.reset_by(7), None);
        closed.insert(0x7fff_ffff, ResetBy::Peer);
        assert_eq!(closed.reset_by(0x7fff_ffff), peer);
    }
}
