//! One timer per connection, armed lazily: moving its deadline into the future costs nothing. Every
//! read and write of a body moves it, and would have to reset the runtime's timer, under its lock.

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

/// The deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedDeadline {
    /// The inactivity timeout.
    Idle,
    /// The fixed deadline.
    End,
}

/// A timer whose deadline is an argument of each poll. It takes memory at the first one.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready when `deadline` has passed; `None` never is. The timer is armed again only if it is
    /// set too late, or has run out before the deadline.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        if deadline < sleep.deadline().into_std() {
            sleep.as_mut().reset(deadline.into());
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
    }

    /// Ready at `end`, or after `idle` without activity. `unacked` is asked first: a peer that
    /// still acknowledges bytes is active, and asking is a system call, so only now.
    pub fn poll_idle(
        &mut self,
        cx: &mut Context<'_>,
        activity: &mut ActivityTracker,
        idle: Option<Duration>,
        end: Option<Instant>,
        unacked: impl Fn() -> UnackedBytes,
    ) -> Poll<PassedDeadline> {
        loop {
            let idle_end = idle.map(|idle| activity.deadline(idle));
            let deadline = [idle_end, end].into_iter().flatten().min();
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
}
