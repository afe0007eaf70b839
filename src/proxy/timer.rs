//! One timer per connection, armed lazily: moving a deadline into the future costs nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::{
    base::clock,
    net::activity::{ActivityTracker, UnackedBytes},
};

/// Which of two times has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedDeadline {
    /// The time without activity.
    Idle,
    /// The end of everything.
    End,
}

/// A timer whose deadline is given anew at each poll.
#[derive(Debug)]
pub struct Timer {
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
}

impl Timer {
    /// A timer that is first armed at `deadline`.
    pub fn new(deadline: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(deadline.into())),
            armed: deadline,
        }
    }

    /// Ready when `deadline` has passed; `None` never is. The timer is touched only when it stands too late, or has run
    /// out before the deadline.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        if deadline < self.armed {
            self.arm(deadline);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            self.arm(deadline);
        }
    }

    /// Ready at `end`, or when there was no activity for `idle`; `unacked` is asked before the latter is believed.
    pub fn poll_idle(
        &mut self,
        cx: &mut Context<'_>,
        activity: &mut ActivityTracker,
        idle: Option<Duration>,
        end: Option<Instant>,
        unacked: impl Fn() -> UnackedBytes,
    ) -> Poll<PassedDeadline> {
        loop {
            let over = idle.map(|idle| activity.deadline(idle));
            let deadline = [over, end].into_iter().flatten().min();
            ready!(self.poll(cx, deadline));
            if deadline == end {
                return Poll::Ready(PassedDeadline::End);
            }
            let now = clock::now();
            if idle.is_some_and(|idle| activity.is_over(idle, unacked(), now)) {
                return Poll::Ready(PassedDeadline::Idle);
            }
        }
    }

    fn arm(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline.into());
        self.armed = deadline;
    }
}
