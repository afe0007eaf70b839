//! Flood guard of a connection: a token bucket for frames that cost us work and the peer nothing (RFC 9113 section 10.5).
//!
//! Honest traffic keeps the bucket full. Must not know streams; `input.rs` charges frames, `core.rs` credits ours.

use std::time::Instant;

use crate::{
    base::clock,
    http2::frame::{Frame, flag, kind},
};

/// Tokens of a full bucket.
const BURST: i64 = 2_000;
/// Tokens added per second.
const REFILL_PER_SECOND: i64 = 100;
/// Resets in a row; a browser that leaves a page sends half of that. They have a bucket of their own: credits for cheap frames
/// must not buy resets, each of which throws away the work of a request.
const RESET_BURST: i64 = 200;
/// Resets added per second.
const RESET_REFILL_PER_SECOND: i64 = 10;
/// Cost of a field block for a closed stream, which is decoded for nothing.
pub(super) const LATE_HEAD_COST: i64 = 3;

/// Token buckets of one connection.
#[derive(Debug)]
pub(super) struct FloodGuard {
    tokens: i64,
    resets: i64,
    refilled: Instant,
}

impl FloodGuard {
    pub(super) fn new() -> Self {
        Self {
            tokens: BURST,
            resets: RESET_BURST,
            refilled: clock::now(),
        }
    }

    /// Takes `cost` tokens; a negative cost adds some.
    pub(super) fn charge(&mut self, cost: i64) {
        self.tokens = (self.tokens - cost).min(BURST);
    }

    /// Takes a reset, of the peer or one of ours that it caused: the work for the stream was wasted.
    pub(super) const fn charge_reset(&mut self) {
        self.resets -= 1;
    }

    /// Adds tokens for a message frame of ours: two window updates and a PING may answer it.
    pub(super) fn credit(&mut self) {
        self.charge(-7);
    }

    /// Adds tokens for a head of ours, and a reset of its stream.
    pub(super) fn credit_response_head(&mut self) {
        self.credit();
        self.resets = (self.resets + 1).min(RESET_BURST);
    }

    /// No tokens are left: the connection is to be closed with ENHANCE_YOUR_CALM.
    pub(super) fn is_exhausted(&mut self) -> bool {
        if self.tokens >= 0 && self.resets >= 0 {
            return false;
        }
        let now = clock::now();
        let passed = now.saturating_duration_since(self.refilled);
        let seconds = i64::try_from(passed.as_secs()).unwrap_or(BURST);
        if seconds > 0 {
            self.refilled = now;
            let seconds = seconds.min(BURST);
            self.charge(-seconds * REFILL_PER_SECOND);
            self.resets = (self.resets + seconds * RESET_REFILL_PER_SECOND).min(RESET_BURST);
        }
        self.tokens < 0 || self.resets < 0
    }
}

/// Cost of a frame of the peer, negative (a credit) for useful frames; RFC 9113 section 6.
pub(super) fn cost(frame: Frame) -> i64 {
    match frame.kind {
        kind::DATA if frame.length > 0 => -1,
        kind::DATA if !frame.has(flag::END_STREAM) => 10,
        // Heads are limited by the number of streams, those of backends by their number on a stream too.
        // Resets are counted.
        kind::DATA | kind::HEADERS | kind::RST_STREAM => 0,
        // Each is answered.
        kind::SETTINGS | kind::PING if !frame.has(flag::ACK) => 5,
        kind::CONTINUATION => 20,
        // PRIORITY, WINDOW_UPDATE, acknowledgements, unknown ones.
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn header(kind: u8, flags: u8, length: usize) -> Frame {
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
        guard.credit();
        assert!(guard.is_exhausted(), "a frame is worth none");
        guard.credit_response_head();
        assert!(!guard.is_exhausted(), "a response is worth one");
    }

    #[test]
    fn what_a_client_does_for_a_response_costs_less_than_the_response_gives() {
        let honest = 2 * cost(header(kind::WINDOW_UPDATE, 0, 4)) + cost(header(kind::PING, 0, 8));
        assert!(honest <= 7);
        assert!(cost(header(kind::DATA, 0, 20)) < 0, "a part of an upload");
        assert_eq!(
            cost(header(kind::DATA, flag::END_STREAM, 0)),
            0,
            "the end of one"
        );
        assert!(cost(header(kind::DATA, 0, 0)) > 0);
    }
}
