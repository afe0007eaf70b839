//! Flood guard of a connection: a token bucket for frames that cost us work and the peer nothing
//! (RFC 9113 section 10.5).
//!
//! Honest traffic keeps the bucket full. Frames that belong to a message are free: WINDOW_UPDATEs
//! for as many bytes as were sent, some PRIORITY frames per request, an empty DATA frame between
//! others. Must not know streams.

use std::time::{Duration, Instant};

use crate::{
    base::clock,
    http2::frame::{Frame, MAX_WINDOW_SIZE, flag, kind},
};

/// Tokens of a full bucket.
const BURST_TOKENS: i64 = 2_000;
/// Tokens added per second.
const REFILL_PER_SECOND: i64 = 100;
/// Resets in a row; a browser that leaves a page sends half of that. They have their own bucket, as
/// credits for cheap frames must not cover resets, each of which wastes the work of a request
/// (CVE-2023-44487, "rapid reset").
const RESET_BURST: i64 = 200;
/// Resets added per second.
const RESET_REFILL_PER_SECOND: i64 = 10;
/// Cost of a field block for a closed or refused stream: it must be decoded all the same.
pub(super) const LATE_HEAD_COST: i64 = 3;
/// Cost of a frame that we must reply to (PING, SETTINGS; CVE-2019-9512 and 9515).
pub(super) const ANSWERED_FRAME_COST: i64 = 5;
/// Cost of a frame without effect.
pub(super) const IDLE_FRAME_COST: i64 = 1;
/// Cost of an empty DATA frame after [`MAX_EMPTY_RUN`] others (CVE-2019-9518).
const EMPTY_DATA_COST: i64 = 10;
/// Empty DATA frames in a row that are free.
const MAX_EMPTY_RUN: u32 = 8;
/// PRIORITY, PRIORITY_UPDATE (RFC 9218) and other frames without effect that are free per request.
const PRIORITIES_PER_REQUEST: u32 = 16;
/// Most free ones at a time: those of 1,000 requests.
const MAX_PRIORITIES: u32 = 1_000 * PRIORITIES_PER_REQUEST;
/// Refused streams that are free: the client may not yet know our limit or our GOAWAY.
const FREE_REFUSALS: u32 = 4_096;
/// Age from which the reset of a stream is no longer rapid.
pub(super) const RAPID_RESET_AGE: Duration = Duration::from_millis(100);
/// The same for the shortest deadline that a client can set.
const MIN_RAPID_RESET_AGE: Duration = Duration::from_millis(10);
/// Cost of an interim response after the free ones of a stream.
pub(super) const INTERIM_RESPONSE_COST: i64 = 3;

/// Token buckets of one connection.
#[derive(Debug)]
pub(super) struct FloodGuard {
    tokens: i64,
    resets: i64,
    refilled: Instant,
    /// DATA bytes sent, less those that WINDOW_UPDATEs of the connection have covered.
    unacknowledged: u32,
    /// The same for WINDOW_UPDATEs of streams. One sum for all streams, as updates for closed
    /// streams are honest.
    unacknowledged_on_streams: u32,
    /// Free PRIORITY frames.
    priorities: u32,
    /// Empty DATA frames since the last frame that was part of a message.
    empty_run: u32,
    free_refusals: u32,
}

impl FloodGuard {
    pub(super) fn new() -> Self {
        Self {
            tokens: BURST_TOKENS,
            resets: RESET_BURST,
            refilled: clock::now(),
            unacknowledged: 0,
            unacknowledged_on_streams: 0,
            priorities: 0,
            empty_run: 0,
            free_refusals: FREE_REFUSALS,
        }
    }

    /// Takes `cost` tokens; a negative cost adds tokens.
    pub(super) fn charge(&mut self, cost: i64) {
        self.tokens = (self.tokens - cost).min(BURST_TOKENS);
    }

    /// Charges a frame by its header. DATA, WINDOW_UPDATE, RST_STREAM, CONTINUATION and interim
    /// responses are charged by their effect instead.
    pub(super) fn charge_frame(&mut self, frame: Frame) {
        match frame.kind {
            kind::DATA | kind::WINDOW_UPDATE | kind::RST_STREAM | kind::CONTINUATION => {}
            // Bounded by the number of streams.
            kind::HEADERS => self.empty_run = 0,
            kind::SETTINGS | kind::PING if !frame.has(flag::ACK) => {
                self.charge(ANSWERED_FRAME_COST);
            }
            kind::SETTINGS | kind::PING | kind::GOAWAY => self.charge(IDLE_FRAME_COST),
            // PRIORITY and unknown types, which RFC 9113 section 5.5 requires us to ignore.
            _ => match self.priorities.checked_sub(1) {
                Some(left) => self.priorities = left,
                None => self.charge(IDLE_FRAME_COST),
            },
        }
    }

    /// Charges a DATA frame with `content` bytes beside its padding.
    pub(super) fn charge_data(&mut self, content: usize, ends: bool) {
        if content > 0 || ends {
            self.empty_run = 0;
            self.charge(if content > 0 { -1 } else { 0 });
            return;
        }
        self.empty_run += 1;
        if self.empty_run > MAX_EMPTY_RUN {
            self.charge(EMPTY_DATA_COST);
        }
    }

    /// Charges a WINDOW_UPDATE, unless it covers bytes that were sent and not yet acknowledged.
    pub(super) fn charge_window_update(&mut self, is_of_connection: bool, bytes: u32) {
        let sent = if is_of_connection {
            &mut self.unacknowledged
        } else {
            &mut self.unacknowledged_on_streams
        };
        match sent.checked_sub(bytes) {
            Some(left) if bytes > 0 => *sent = left,
            _ => self.charge(IDLE_FRAME_COST),
        }
    }

    /// Charges a rapid reset, or one of ours that the peer caused: work was wasted.
    pub(super) const fn charge_reset(&mut self) {
        self.resets -= 1;
    }

    /// Charges a refused stream. `is_expected`: the client could not know better.
    pub(super) fn charge_refusal(&mut self, is_expected: bool) {
        match self.free_refusals.checked_sub(1) {
            Some(left) if is_expected => self.free_refusals = left,
            _ => self.charge(LATE_HEAD_COST),
        }
    }

    /// Credits a message frame of ours: it may be followed by two WINDOW_UPDATEs and a PING.
    pub(super) fn credit(&mut self, content: usize) {
        self.charge(-7);
        for sent in [
            &mut self.unacknowledged,
            &mut self.unacknowledged_on_streams,
        ] {
            *sent = sent.saturating_add(content as u32).min(MAX_WINDOW_SIZE);
        }
    }

    /// Credits a head of ours, and one reset of its stream.
    pub(super) fn credit_head(&mut self) {
        self.credit(0);
        self.resets = (self.resets + 1).min(RESET_BURST);
    }

    /// Credits the PRIORITY frames of a request.
    pub(super) fn credit_request(&mut self) {
        self.priorities = (self.priorities + PRIORITIES_PER_REQUEST).min(MAX_PRIORITIES);
    }

    /// True if no tokens are left: close the connection with ENHANCE_YOUR_CALM. Reads the clock
    /// only then, so the usual frame costs two comparisons.
    pub(super) fn is_exhausted(&mut self) -> bool {
        if self.tokens >= 0 && self.resets >= 0 {
            return false;
        }
        let now = clock::now();
        let passed = now.saturating_duration_since(self.refilled);
        let seconds = i64::try_from(passed.as_secs()).unwrap_or(BURST_TOKENS);
        if seconds > 0 {
            self.refilled = now;
            let seconds = seconds.min(BURST_TOKENS);
            self.charge(-seconds * REFILL_PER_SECOND);
            self.resets = (self.resets + seconds * RESET_REFILL_PER_SECOND).min(RESET_BURST);
        }
        self.tokens < 0 || self.resets < 0
    }
}

/// Age from which the reset of a request with this deadline is no longer rapid. Half the deadline
/// is enough, as the request may be delayed more than the reset; the lower bound keeps immediate
/// resets rapid for any deadline.
pub(super) fn rapid_reset_age(deadline: Duration) -> Duration {
    (deadline / 2).clamp(MIN_RAPID_RESET_AGE, RAPID_RESET_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn header(kind: u8, flags: u8, length: usize) -> Frame {
        Frame {
            length,
            kind,
            flags,
            stream: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_return_with_time_and_with_responses() {
        let mut guard = FloodGuard::new();
        for _ in 0..200 {
            guard.charge_reset();
            assert!(!guard.is_exhausted());
        }
        guard.charge_reset();
        assert!(guard.is_exhausted());
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..9 {
            assert!(!guard.is_exhausted());
            guard.charge_reset();
        }
        guard.charge_reset();
        assert!(guard.is_exhausted(), "a second is worth ten");
        guard.credit(1);
        assert!(guard.is_exhausted(), "a frame is worth none");
        guard.credit_head();
        assert!(!guard.is_exhausted(), "a response is worth one");
    }

    /// Number of times that `charge` succeeds, at most `most`.
    fn times(most: u32, mut charge: impl FnMut(&mut FloodGuard)) -> u32 {
        let mut guard = FloodGuard::new();
        let mut is_free = |_: &u32| {
            charge(&mut guard);
            !guard.is_exhausted()
        };
        (0..most).take_while(|at| is_free(at)).count() as u32
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_were_sent_are_acknowledged_in_any_steps_and_no_others() {
        for step in [1, 7, 4_096] {
            for is_of_connection in [true, false] {
                let mut guard = FloodGuard::new();
                guard.credit(64 << 10);
                let mut updates = 0;
                while !guard.is_exhausted() {
                    guard.charge_window_update(is_of_connection, step);
                    updates += 1;
                }
                assert_eq!(updates, (64 << 10) / step + 2_001, "{step}");
            }
        }
        // Updates beyond the bytes sent do not use up those of the bytes.
        let mut guard = FloodGuard::new();
        guard.credit(10);
        guard.charge_window_update(true, 1 << 20);
        for _ in 0..10 {
            guard.charge_window_update(true, 1);
        }
        assert_eq!((guard.tokens, guard.unacknowledged), (BURST_TOKENS - 1, 0));
        let nothing = times(9_000, |guard| guard.charge_window_update(true, 0));
        assert_eq!(nothing, 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_be_followed_by_priorities_and_not_by_a_flood_of_them() {
        for frame in [
            header(kind::PRIORITY, 0, 5),
            header(0x10, 0, 20),
            header(0x77, 0, 0),
        ] {
            let honest = times(50_000, |guard| {
                guard.credit_request();
                (0..PRIORITIES_PER_REQUEST).for_each(|_| guard.charge_frame(frame));
            });
            assert_eq!(honest, 50_000);
            let mut guard = FloodGuard::new();
            (0..10_000).for_each(|_| guard.credit_request());
            (0..MAX_PRIORITIES).for_each(|_| guard.charge_frame(frame));
            assert_eq!(guard.tokens, BURST_TOKENS);
            assert_eq!(times(9_000, |guard| guard.charge_frame(frame)), 2_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn empty_data_is_charged_when_several_frames_come_in_a_row() {
        let in_turns = |guard: &mut FloodGuard| {
            (0..MAX_EMPTY_RUN).for_each(|_| guard.charge_data(0, false));
            guard.charge_data(1, false);
        };
        assert_eq!(times(50_000, in_turns), 50_000);
        assert_eq!(times(50_000, |guard| guard.charge_data(0, true)), 50_000);
        let flood = times(50_000, |guard| guard.charge_data(0, false));
        assert_eq!(flood, MAX_EMPTY_RUN + 200);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_free_while_a_client_cannot_know_better_but_not_for_ever() {
        let early = times(50_000, |guard| guard.charge_refusal(true));
        assert_eq!(early, FREE_REFUSALS + 666);
        assert_eq!(times(50_000, |guard| guard.charge_refusal(false)), 666);
    }

    #[test]
    fn a_reset_at_the_deadline_of_a_request_is_not_rapid_and_one_at_once_is() {
        let age = |deadline| rapid_reset_age(Duration::from_millis(deadline)).as_millis();
        assert_eq!([age(0), age(30), age(300)], [10, 15, 100]);
    }
}
