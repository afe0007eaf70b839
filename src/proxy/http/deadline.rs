//! Deadlines that know which timeout they stand for.

use std::{
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use crate::{
    base::clock,
    proxy::timer::{PassedDeadline, Timer},
    reason::Reason,
};

/// The end of a timeout, with the reason of an exchange that fails by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    pub at: Instant,
    pub reason: Reason,
}

impl Deadline {
    /// The deadline `timeout` after `began`; none without a timeout.
    pub(super) fn after(began: Instant, timeout: Option<Duration>, reason: Reason) -> Option<Self> {
        timeout.map(|timeout| Self {
            at: began + timeout,
            reason,
        })
    }

    /// The earlier of two deadlines, `total` if both are at the same time.
    pub(super) fn earliest(own: Option<Self>, total: Option<Self>) -> Option<Self> {
        match (own, total) {
            (Some(own), Some(total)) if own.at < total.at => Some(own),
            (own, total) => total.or(own),
        }
    }

    /// True from `at` on.
    pub(super) fn has_passed(&self) -> bool {
        clock::now() >= self.at
    }

    /// Ready with the reason when `deadline` has passed; `None` never does.
    pub(super) fn poll(
        deadline: Option<Self>,
        timer: &mut Timer,
        cx: &mut Context<'_>,
    ) -> Poll<Reason> {
        let Some(Self { at, reason }) = deadline else {
            return Poll::Pending;
        };
        ready!(timer.poll(cx, Some(at)));
        Poll::Ready(reason)
    }

    /// The reason of an exchange that ran into `total`; `None` if it was idle for too long instead.
    pub(super) fn reason_of(passed: PassedDeadline, total: Option<Self>) -> Option<Reason> {
        match passed {
            PassedDeadline::Idle => None,
            PassedDeadline::End => total.map(|total| total.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_counts_and_the_total_timeout_if_both_are_at_once() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let own = |seconds| {
            let reason = Reason::RequestTimeout;
            Some(Deadline {
                at: at(seconds),
                reason,
            })
        };
        let total = |seconds| {
            let reason = Reason::TotalTimeout;
            Some(Deadline {
                at: at(seconds),
                reason,
            })
        };
        for (one, other, expected) in [
            (None, None, None),
            (own(1), None, own(1)),
            (None, total(1), total(1)),
            (own(1), total(2), own(1)),
            (own(2), total(1), total(1)),
            (own(1), total(1), total(1)),
        ] {
            assert_eq!(Deadline::earliest(one, other), expected);
        }
    }
}
