//! What a peer's frames cost us and not the peer: pings, settings, priorities, empty frames and resets are paid for from an
//! allowance that honest traffic keeps full (RFC 9113 section 10.5).

use std::time::Instant;

use crate::{
    base::clock,
    http2::frame::{Frame, flag, kind},
};

/// What a connection may spend at once.
const ALLOWANCE: i64 = 2_000;
/// What it gets back in a second.
const REFILL: i64 = 100;
/// Streams that can be reset in a row: a browser that leaves a page does half of that. Counted apart, because frames that earn
/// something are cheaper than the work that a reset throws away.
const RESETS: i64 = 200;
/// How many of them it gets back in a second.
const RESETS_REFILL: i64 = 10;
/// A head for a stream that is past, which is decoded for nothing.
pub(super) const LATE_HEAD: i64 = 3;

/// The account of one connection.
#[derive(Debug)]
pub(super) struct Account {
    left: i64,
    resets: i64,
    filled: Instant,
}

impl Account {
    pub(super) fn new() -> Self {
        Self {
            left: ALLOWANCE,
            resets: RESETS,
            filled: clock::now(),
        }
    }

    pub(super) fn pay(&mut self, cost: i64) {
        self.left = (self.left - cost).min(ALLOWANCE);
    }

    /// A reset, whose it is: the work for the stream was for nothing, and a peer can provoke ours.
    pub(super) const fn pay_reset(&mut self) {
        self.resets -= 1;
    }

    /// A frame of ours that is part of a message: it may be followed by two window updates and a ping.
    pub(super) fn earn(&mut self) {
        self.pay(-7);
    }

    /// A head of ours: a stream that may be reset.
    pub(super) fn earn_head(&mut self) {
        self.earn();
        self.resets = (self.resets + 1).min(RESETS);
    }

    /// Nothing is left: the connection is to be closed with ENHANCE_YOUR_CALM.
    pub(super) fn is_spent(&mut self) -> bool {
        if self.left >= 0 && self.resets >= 0 {
            return false;
        }
        let now = clock::now();
        let passed = now.saturating_duration_since(self.filled);
        let seconds = i64::try_from(passed.as_secs()).unwrap_or(ALLOWANCE);
        if seconds > 0 {
            self.filled = now;
            let seconds = seconds.min(ALLOWANCE);
            self.pay(-seconds * REFILL);
            self.resets = (self.resets + seconds * RESETS_REFILL).min(RESETS);
        }
        self.left < 0 || self.resets < 0
    }
}

/// What a frame of the peer costs, and less than nothing for one that is work asked for or done; RFC 9113 section 6.
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
    async fn what_is_spent_comes_back_with_time_and_with_responses() {
        let mut account = Account::new();
        for _ in 0..200 {
            account.pay_reset();
            assert!(!account.is_spent());
        }
        account.pay_reset();
        assert!(account.is_spent());
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..9 {
            assert!(!account.is_spent());
            account.pay_reset();
        }
        account.pay_reset();
        assert!(account.is_spent(), "a second is worth ten");
        account.earn();
        assert!(account.is_spent(), "a frame is worth none");
        account.earn_head();
        assert!(!account.is_spent(), "a response is worth one");
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
