//! Receive windows: bytes that a peer may send before we have passed them on (RFC 9113 section
//! 5.2).
//!
//! The connection window is the sum of all stream windows, so an unread stream never blocks
//! another. A stream begins with a small window, which doubles while the window limits the
//! transfer: when half of it is consumed within two round trips. All growth comes from one reserve,
//! of which a stream gets at most half of the remainder, so the memory of a connection is bounded.

use std::time::{Duration, Instant};

use crate::http2::frame::INITIAL_WINDOW;

/// Sum of the initial stream windows of a client's connection, within the bounds below.
const CLIENT_WINDOWS: usize = 6_400 << 10;
/// Bounds of the initial window of a stream.
const MIN_FIRST_WINDOW: usize = 16 << 10;
const MAX_FIRST_WINDOW: usize = 256 << 10;
/// The same for a connection to a backend.
const BACKEND_WINDOWS: usize = 19_200 << 10;
const MAX_BACKEND_WINDOW: usize = 192 << 10;
/// Growth of all stream windows of a connection.
const WINDOW_RESERVE_BYTES: u32 = 6 << 20;
/// Largest window of a stream.
const MAX_WINDOW: u32 = 4 << 20;
/// Smallest growth step.
const MIN_GROWTH: u32 = 16 << 10;
/// Released bytes after which the connection window is announced: fewer would cost a frame each.
const CONNECTION_STEP: u32 = 512 << 10;
/// Time between two RTT measurements, each of which is one PING: gRPC servers count PINGs.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Payload of the RTT PING.
pub(super) const RTT_PROBE: [u8; 8] = *b"rttprobe";

/// Receive window of a stream or of a connection.
#[derive(Debug)]
pub(super) struct RecvWindow {
    size: u32,
    /// Bytes that the peer may still send; negative after a smaller initial window took effect.
    left: i64,
    /// Bytes released but not yet announced.
    unannounced: u32,
    /// Released bytes that are worth a WINDOW_UPDATE.
    step: u32,
    /// Bytes taken from the reserve.
    grown: u32,
    announced_at: Option<Instant>,
}

impl RecvWindow {
    /// Creates the window of a stream.
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

    /// Takes received bytes out of the window. False: the peer sent more than allowed.
    pub(super) fn consume(&mut self, count: usize) -> bool {
        let left = self.left - i64::from(count as u32);
        let is_allowed = left >= 0;
        if is_allowed {
            self.left = left;
        }
        is_allowed
    }

    /// Releases bytes that were passed on. True: a WINDOW_UPDATE is due.
    pub(super) const fn release(&mut self, count: usize) -> bool {
        self.unannounced += count as u32;
        self.unannounced >= self.step
    }

    /// Announces the released bytes; returns the increment for the WINDOW_UPDATE.
    pub(super) fn announce(&mut self) -> u32 {
        self.left += i64::from(self.unannounced);
        std::mem::take(&mut self.unannounced)
    }

    /// Applies another initial window, RFC 9113 section 6.9.2.
    pub(super) fn resize(&mut self, from: u32, to: u32) {
        self.left += i64::from(to) - i64::from(from);
        self.size = self.size.saturating_sub(from) + to;
        self.step = self.size / 2;
    }

    /// True if all received bytes were released.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.left + i64::from(self.unannounced) == i64::from(self.size)
    }
}

/// Window sizes of a connection, and the RTT that drives their growth.
#[derive(Debug)]
pub(super) struct RecvWindows {
    /// Initial window of each stream, SETTINGS_INITIAL_WINDOW_SIZE.
    pub first: u32,
    /// Window of the connection.
    pub connection: RecvWindow,
    /// Bytes by which stream windows may still grow.
    reserve: u32,
    rtt: Option<Duration>,
    probed_at: Option<Instant>,
    is_probing: bool,
}

impl RecvWindows {
    /// Creates windows for a client with at most `streams` concurrent streams.
    pub(super) fn for_client(streams: usize) -> Self {
        let streams = streams.max(1);
        let first = (CLIENT_WINDOWS / streams).clamp(MIN_FIRST_WINDOW, MAX_FIRST_WINDOW);
        Self::new(first as u32, streams as u32)
    }

    /// Creates windows for a backend with at most `streams` concurrent streams.
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

    /// Increment of the connection's first WINDOW_UPDATE.
    pub(super) const fn first_increment(&self) -> u32 {
        self.connection.size.saturating_sub(INITIAL_WINDOW)
    }

    /// Creates the window of a new stream. Before the peer has acknowledged our SETTINGS it may
    /// still use the 64 KiB of the protocol.
    pub(super) fn stream(&self, is_acknowledged: bool) -> RecvWindow {
        RecvWindow::new(if is_acknowledged {
            self.first
        } else {
            self.first.max(INITIAL_WINDOW)
        })
    }

    /// Announces the window of a stream with `unread` buffered bytes, grown if it limits the
    /// transfer; returns the increment.
    pub(super) fn announce(&mut self, window: &mut RecvWindow, unread: usize, now: Instant) -> u32 {
        let before = window.announced_at.replace(now);
        let is_limit = self.rtt.is_some_and(|rtt| {
            before.is_some_and(|before| now.saturating_duration_since(before) < 2 * rtt)
        });
        // With many unread bytes our reader is the bottleneck, and a larger window would only fill
        // memory.
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

    /// Returns the growth of a closed stream to the reserve.
    pub(super) const fn reclaim(&mut self, window: &RecvWindow) {
        self.reserve += window.grown;
    }

    /// Starts an RTT measurement if one is due; the caller sends the PING.
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

    /// Ends the RTT measurement.
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

    const ONE_MS: Duration = Duration::from_millis(1);

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
    fn all_streams_have_windows_and_a_connection_is_bounded() {
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

    /// Uploads `count` bytes with an RTT of 100 ms, all read at once; returns the number of round
    /// trips.
    fn round_trips(windows: &mut RecvWindows, window: &mut RecvWindow, count: u32) -> u32 {
        let rtt = 100 * ONE_MS;
        let (mut now, mut credit, mut sent, mut trips) = (clock::now(), window.left, 0, 0);
        let mut probed = None;
        while sent < i64::from(count) {
            now += rtt;
            trips += 1;
            if probed.is_some_and(|at| now >= at + rtt) {
                windows.finish_probe(now);
                probed = None;
            }
            // A whole window arrives at once and is read in parts.
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
        // Other streams grow as well, but less.
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
        windows.finish_probe(now + ONE_MS);
        assert!(!windows.begins_probe(now + PROBE_INTERVAL / 2));
        let mut window = windows.stream(true);
        let half = window.size as usize / 2;
        for (unread, pause) in [(0, 3 * ONE_MS), (half, Duration::ZERO)] {
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
