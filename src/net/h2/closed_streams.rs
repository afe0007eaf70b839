//! Streams that we closed while frames for them may still arrive (RFC 9113 section 5.1, "closed").

use std::collections::VecDeque;

/// Ranges that are kept at least, however few streams a connection may have.
const MIN_RANGES: usize = 256;

/// Streams closed last, as ranges of ids: streams that are closed in order form one range.
#[derive(Debug)]
pub(super) struct ClosedStreams {
    /// First and last id of each range, in the order of closing.
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

    pub(super) fn insert(&mut self, id: u32) {
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

    pub(super) fn contains(&self, id: u32) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&id))
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
                closed.insert(*id);
            }
            let known = ids.iter().filter(|id| closed.contains(**id)).count();
            assert_eq!(known, kept);
            assert!(closed.contains(ids[2_999]) && !closed.contains(ids[0]));
            assert_eq!(closed.ranges.len(), kept);
        }
    }

    #[test]
    fn streams_that_are_closed_in_order_form_one_range() {
        let mut closed = ClosedStreams::new(100);
        (1..200_000).step_by(2).for_each(|id| closed.insert(id));
        assert!(closed.contains(1) && closed.contains(199_999));
        assert!(!closed.contains(200_001));
        assert_eq!(closed.ranges.len(), 1);
    }
}
