//! Receive windows: how much a peer may send that we have not passed on (RFC 9113 section 5.2).
//!
//! The window of a connection is the sum of what its streams may have, so streams that are not read hold up no other. A
//! stream begins with a small window, which doubles while it is what limits the transfer: when half of it is consumed within
//! two round trips. Windows grow out of one reserve, of which a stream gets at most half of what is left.

use std::time::{Duration, Instant};

use crate::http2::frame::INITIAL_WINDOW;

/// Bytes of the first windows of all streams of a client's connection, where they are not at one of the bounds below.
const CLIENT_WINDOWS: usize = 6_400 << 10;
/// Bounds of a stream's first window.
const MIN_FIRST_WINDOW: usize = 16 << 10;
const MAX_FIRST_WINDOW: usize = 256 << 10;
/// The same two for a connection to a backend.
const BACKEND_WINDOWS: usize = 19_200 << 10;
const MAX_BACKEND_WINDOW: usize = 192 << 10;
/// Bytes by which windows of a connection may grow.
const WINDOW_RESERVE_BYTES: u32 = 6 << 20;
/// Largest window of a stream.
const MAX_WINDOW: u32 = 4 << 20;
/// Fewest bytes that a window grows by.
const MIN_GROWTH: u32 = 16 << 10;
/// Bytes whose release is worth a WINDOW_UPDATE of the connection.
const CONNECTION_STEP: u32 = 512 << 10;
/// Time between two measurements of the round trip, each of which is a PING.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Payload of that PING.
pub(super) const RTT_PROBE: [u8; 8] = *b"rttprobe";

/// Window of a stream or of a connection.
#[derive(Debug)]
pub(super) struct RecvWindow {
    size: u32,
    /// Bytes that the peer may still send; negative after the peer has learned of a smaller first window.
    left: i64,
    /// Bytes that were released and not announced to the peer.
    unannounced: u32,
    /// Bytes that are worth an announcement.
    step: u32,
    /// Bytes from the reserve.
    grown: u32,
    announced_at: Option<Instant>,
}

impl RecvWindow {
    /// A window of a stream.
    pub(super) const fn new(size: u32) -> Self {
        Self {
            size,
            left: size as i64,
            unannounced: 0,
            step: size / 2,
            grown: 0,
            announced_at: None,
        }
    }

    /// Takes `count` received bytes out of the window. False: more than was allowed.
    pub(super) fn consume(&mut self, count: usize) -> bool {
        let left = self.left - i64::from(count as u32);
        let is_allowed = left >= 0;
        if is_allowed {
            self.left = left;
        }
        is_allowed
    }

    /// Releases `count` bytes that were passed on. True: that is worth an announcement.
    pub(super) const fn release(&mut self, count: usize) -> bool {
        self.unannounced += count as u32;
        self.unannounced >= self.step
    }

    /// The increment of a WINDOW_UPDATE that is sent now.
    pub(super) fn announce(&mut self) -> u32 {
        self.left += i64::from(self.unannounced);
        std::mem::take(&mut self.unannounced)
    }

    /// The peer has learned of another first window, RFC 9113 section 6.9.2.
    pub(super) fn resize(&mut self, from: u32, to: u32) {
        self.left += i64::from(to) - i64::from(from);
        self.size = self.size.saturating_sub(from) + to;
        self.step = self.size / 2;
    }

    /// Everything that was received was released.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.left + i64::from(self.unannounced) == i64::from(self.size)
    }
}

/// Sizes of the windows of a connection, and the round trip by which they grow.
#[derive(Debug)]
pub(super) struct RecvWindows {
    /// First window of each stream, SETTINGS_INITIAL_WINDOW_SIZE.
    pub first: u32,
    /// Window of the connection.
    pub connection: RecvWindow,
    /// Bytes that windows of streams may still grow by.
    reserve: u32,
    rtt: Option<Duration>,
    probed_at: Option<Instant>,
    is_probing: bool,
}

impl RecvWindows {
    /// Windows for a client with at most `streams` streams at a time.
    pub(super) fn for_client(streams: usize) -> Self {
        let streams = streams.max(1);
        let first = (CLIENT_WINDOWS / streams).clamp(MIN_FIRST_WINDOW, MAX_FIRST_WINDOW);
        Self::new(first as u32, streams as u32)
    }

    /// Windows for a backend with at most `streams` streams at a time.
    pub(super) fn for_backend(streams: usize) -> Self {
        let streams = streams.max(1);
        let first = (BACKEND_WINDOWS / streams).clamp(MIN_FIRST_WINDOW, MAX_BACKEND_WINDOW);
        Self::new(first as u32, streams as u32)
    }

    fn new(first: u32, streams: u32) -> Self {
        let size = first
            .saturating_mul(streams)
            .saturating_add(WINDOW_RESERVE_BYTES + CONNECTION_STEP);
        let connection = RecvWindow {
            step: CONNECTION_STEP,
            ..RecvWindow::new(size)
        };
        Self {
            first,
            connection,
            reserve: WINDOW_RESERVE_BYTES,
            rtt: None,
            probed_at: None,
            is_probing: false,
        }
    }

    /// The increment of the connection's first WINDOW_UPDATE.
    pub(super) const fn first_increment(&self) -> u32 {
        self.connection.size.saturating_sub(INITIAL_WINDOW)
    }

    /// The window of a new stream. Before the peer has acknowledged our settings it may be larger than it will be.
    pub(super) fn stream(&self, is_acknowledged: bool) -> RecvWindow {
        RecvWindow::new(if is_acknowledged {
            self.first
        } else {
            self.first.max(INITIAL_WINDOW)
        })
    }

    /// The increment of a WINDOW_UPDATE that is sent now for the window of a stream with `unread` bytes.
    pub(super) fn announce(&mut self, window: &mut RecvWindow, unread: usize, now: Instant) -> u32 {
        let before = window.announced_at.replace(now);
        let is_limit = self.rtt.is_some_and(|rtt| {
            before.is_some_and(|before| now.saturating_duration_since(before) < 2 * rtt)
        });
        // With much unread it is the reader who is slow.
        let growth = window
            .size
            .min(MAX_WINDOW.saturating_sub(window.size))
            .min(self.reserve / 2);
        if is_limit && unread < window.size as usize / 4 && growth >= MIN_GROWTH {
            self.reserve -= growth;
            window.grown += growth;
            window.size += growth;
            window.step = window.size / 2;
            window.unannounced += growth;
        }
        window.announce()
    }

    /// Returns what the window of a stream that is over has grown by.
    pub(super) const fn reclaim(&mut self, window: &RecvWindow) {
        self.reserve += window.grown;
    }

    /// A PING that measures the round trip is to be sent at `now`, when content is being received.
    pub(super) fn begins_probe(&mut self, now: Instant) -> bool {
        let is_recent = self
            .probed_at
            .is_some_and(|at| now.saturating_duration_since(at) < PROBE_INTERVAL);
        if self.is_probing || is_recent {
            return false;
        }
        self.probed_at = Some(now);
        self.is_probing = true;
        true
    }

    /// The peer has answered that PING.
    pub(super) fn finish_probe(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_probing) {
            let sent = self.probed_at;
            self.rtt = sent.map(|sent| now.saturating_duration_since(sent));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const MS: Duration = Duration::from_millis(1);

    fn is_kept(windows: &RecvWindows, streams: u32) {
        let most = windows.first * streams + WINDOW_RESERVE_BYTES;
        assert!(most + CONNECTION_STEP <= windows.connection.size);
    }

    #[test]
    fn what_was_released_is_announced_in_large_parts_and_never_lost() {
        let mut window = RecvWindow::new(1_000);
        let (mut sent, mut told) = (0, 0);
        for _ in 0..1_000 {
            assert!(window.consume(300));
            sent += 300;
            if window.release(300) {
                let part = window.announce();
                assert!(part >= 500);
                told += i64::from(part);
            }
            assert_eq!(window.left + sent - told, 1_000);
        }
        assert!(!window.consume(1_001), "more than was allowed");
    }

    #[test]
    fn all_streams_have_room_and_a_connection_has_a_bound() {
        for (streams, first, most) in [
            (1, 256 << 10, 7 << 20),
            (100, 64 << 10, 13 << 20),
            (1_000, 16 << 10, 23 << 20),
        ] {
            let windows = RecvWindows::for_client(streams);
            assert_eq!(windows.first, first);
            assert!(windows.connection.size <= most);
            is_kept(&windows, streams as u32);
        }
        for (streams, most) in [(1, 7 << 20), (100, 26 << 20), (1_000, 26 << 20)] {
            let windows = RecvWindows::for_backend(streams);
            assert!(windows.connection.size <= most);
            is_kept(&windows, streams as u32);
        }
    }

    #[test]
    fn a_first_window_below_that_of_the_protocol_holds_once_it_is_acknowledged() {
        let windows = RecvWindows::for_client(1_000);
        let mut window = windows.stream(false);
        assert!(window.consume(60_000), "the client may not know better");
        window.resize(INITIAL_WINDOW, windows.first);
        assert!(!window.consume(1));
        window.release(60_000);
        assert_eq!(window.announce(), 60_000);
        assert!(window.is_whole());
        assert!(window.consume(16 << 10));
        assert!(!window.consume(1));
        assert_eq!(windows.stream(true).size, 16 << 10);
    }

    /// Uploads `count` bytes over such a round trip, all of which are read at once; gives how many round trips that took.
    fn round_trips(windows: &mut RecvWindows, window: &mut RecvWindow, count: u32) -> u32 {
        let rtt = 100 * MS;
        let (mut now, mut credit, mut sent, mut trips) = (clock::now(), window.left, 0, 0);
        let mut probed = None;
        while sent < i64::from(count) {
            now += rtt;
            trips += 1;
            if probed.is_some_and(|at| now >= at + rtt) {
                windows.finish_probe(now);
                probed = None;
            }
            // All that may be sent arrives at once, and is read in parts.
            let burst = std::mem::take(&mut credit);
            sent += burst;
            let mut unread = burst;
            assert!(window.consume(burst as usize));
            while unread > 0 {
                let part = unread.min(16 << 10);
                unread -= part;
                if window.release(part as usize) {
                    credit += i64::from(windows.announce(window, unread as usize, now));
                    if windows.begins_probe(now) {
                        probed = Some(now);
                    }
                }
            }
        }
        trips
    }

    #[test]
    fn a_window_grows_with_the_round_trip_within_the_bound() {
        let mut windows = RecvWindows::for_client(100);
        let mut window = windows.stream(true);
        let trips = round_trips(&mut windows, &mut window, 40 << 20);
        assert!(trips <= 25, "{trips} round trips");
        assert_eq!(window.size, MAX_WINDOW);
        is_kept(&windows, 100);
        // Others grow as well, but less.
        let mut sizes = Vec::new();
        let mut others = Vec::new();
        for _ in 0..20 {
            let mut other = windows.stream(true);
            round_trips(&mut windows, &mut other, 8 << 20);
            sizes.push(other.size);
            others.push(other);
        }
        assert!(sizes[0] >= 1 << 20, "{sizes:?}");
        let all: u32 = sizes.iter().map(|size| size - windows.first).sum();
        assert!(all + window.grown + windows.reserve == WINDOW_RESERVE_BYTES);
        for other in &others {
            windows.reclaim(other);
        }
        windows.reclaim(&window);
        assert_eq!(windows.reserve, WINDOW_RESERVE_BYTES);
    }

    #[test]
    fn a_window_that_is_not_the_limit_stays_as_it_is() {
        let mut windows = RecvWindows::for_client(100);
        let mut now = clock::now();
        assert!(windows.begins_probe(now));
        assert!(!windows.begins_probe(now + PROBE_INTERVAL), "one at a time");
        windows.finish_probe(now + MS);
        assert!(!windows.begins_probe(now + PROBE_INTERVAL / 2));
        let mut window = windows.stream(true);
        let half = window.size as usize / 2;
        for (unread, pause) in [(0, 3 * MS), (half, Duration::ZERO)] {
            for _ in 0..100 {
                assert!(window.consume(half) && window.release(half));
                now += pause;
                windows.announce(&mut window, unread, now);
            }
            assert_eq!(window.size, windows.first, "slow sender or reader");
        }
        assert!(windows.begins_probe(now + PROBE_INTERVAL));
    }
}
