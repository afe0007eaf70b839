//! Concurrent streams per backend connection, learned from refusals. Pure: time is an argument.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Time without a refusal after which the limit grows by an eighth.
const RECOVERY_TIME: Duration = Duration::from_secs(10);
/// Limit above which it is dropped: no configuration allows more streams.
const MAX_LEARNED: usize = 1000;

/// Limit of one backend, shared by the connections of one worker to it.
#[derive(Debug, Default)]
pub struct StreamLimit {
    /// Limit and the time of its last change; `None`: no recent refusal.
    learned: Cell<Option<(usize, Instant)>>,
    /// Number of reductions.
    epoch: Cell<u32>,
}

impl StreamLimit {
    /// Streams that a connection may have now; `usize::MAX` if nothing was learned.
    pub fn current(&self, now: Instant) -> usize {
        let Some((mut limit, mut changed)) = self.learned.get() else {
            return usize::MAX;
        };
        if now < changed + RECOVERY_TIME {
            return limit;
        }
        while limit < MAX_LEARNED && now >= changed + RECOVERY_TIME {
            limit += (limit / 8).max(1);
            changed += RECOVERY_TIME;
        }
        if limit >= MAX_LEARNED {
            self.forget();
            return usize::MAX;
        }
        self.learned.set(Some((limit, changed)));
        limit
    }

    /// Number of reductions so far: the refusal of a stream opened before the last one adds
    /// nothing.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.get()
    }

    /// Lowers the limit to `streams`, at least 1; never raises it.
    pub(super) fn lower(&self, streams: usize, now: Instant) {
        let streams = streams.max(1);
        if streams < self.current(now) {
            self.learned.set(Some((streams, now)));
            self.epoch.set(self.epoch.get().wrapping_add(1));
        }
    }

    /// Drops the limit.
    pub(super) fn forget(&self) {
        self.learned.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    #[test]
    fn the_limit_falls_with_refusals_and_grows_back_slowly() {
        let (limit, start) = (StreamLimit::default(), clock::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limit.current(start), usize::MAX);
        limit.lower(20, start);
        limit.lower(30, start);
        assert_eq!(limit.current(after(9)), 20);
        assert_eq!(limit.epoch(), 1, "30 lowers nothing");
        assert_eq!(limit.current(after(10)), 22);
        assert_eq!(limit.current(after(30)), 27);
        limit.lower(0, after(30));
        assert_eq!(limit.current(after(30)), 1, "never none at all");
        assert_eq!(limit.current(after(50)), 3);
        assert_eq!(limit.current(after(3_600)), usize::MAX);
    }
}
