//! Whether a request is over the `rate_limit` of its route or listener.
//!
//! How buckets work is in `base/rate.rs`; which limit holds for what, in `snapshot.rs`.

use std::time::Duration;

use super::exchange::Exchange;
use crate::base::clock;

impl Exchange<'_> {
    /// Takes one from the client's bucket; how long it must wait if there is none. Without a limit no clock is read.
    /// Clients on a unix socket have no address, and no limit.
    pub(super) fn take_rate(&self, route: Option<usize>) -> Result<(), Duration> {
        let snapshot = self.context.snapshot;
        let Some((buckets, limit)) = snapshot.rate_limit(self.context.listener_index, route) else {
            return Ok(());
        };
        let Some(client) = self.from.client else {
            return Ok(());
        };
        buckets.take(limit, client, clock::now()).inspect_err(|_| {
            self.context.counters().rate_limited.add(1);
        })
    }
}
