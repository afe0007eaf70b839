//! The `rate_limit` of routes and listeners.
//!
//! `base/rate.rs` has the token buckets, `snapshot.rs` the limit of each route.

use std::time::Duration;

use super::exchange::Exchange;
use crate::base::clock;

impl Exchange<'_> {
    /// Takes a token from the client's bucket; gives the time until the next one if it is empty.
    /// Clients on a unix socket have no address, and no limit. Without a limit no clock is read.
    pub(super) fn take_rate(&self, route: Option<usize>) -> Result<(), Duration> {
        let snapshot = self.context.snapshot;
        let Some((buckets, limit)) = snapshot.rate_limit(self.context.listener_index, route) else {
            return Ok(());
        };
        let Some(client) = self.address.client else {
            return Ok(());
        };
        buckets.take(limit, client, clock::now()).inspect_err(|_| {
            self.context.counters().rate_limited.add(1);
        })
    }
}
