//! One task for each name in use: when it is looked up, and what is known of it.
//!
//! An answer holds for its time to live, within bounds. A failure keeps the last good answer: a
//! broken DNS server must not take down backends that work.

use std::{cell::RefCell, fmt, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use super::{
    answer::{DnsAnswer, TimedAnswer},
    changes::{SourceChange, SourceChanges},
    members::DnsQuery,
    resolver::DnsResolver,
    source_table::{MemberSourceKind, SourceKey, SourceState, SourceTable},
};
use crate::base::{backoff, rng::Random};

/// Bounds of the time for which an answer is used.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_mins(5);

/// Time from the first failure to the next look-up, jittered by 10 %; doubled by each further one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time from a failure to the next look-up.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// State of a name.
#[derive(Debug, Default)]
struct NameState {
    /// The last good answer.
    answer: RefCell<Option<DnsAnswer>>,
    /// It was looked up, with any result.
    is_looked_up: RefCell<bool>,
    refresh: Notify,
}

/// The task that looks up one name; it ends when this is dropped.
pub(super) struct NameTask {
    state: Rc<NameState>,
    task: AbortHandle,
    table: Arc<SourceTable>,
    key: SourceKey,
    source: Arc<SourceState>,
}

impl fmt::Debug for NameTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NameTask").field(&self.key).finish()
    }
}

impl Drop for NameTask {
    fn drop(&mut self) {
        self.task.abort();
        self.table.remove(&self.key, &self.source);
    }
}

impl NameTask {
    /// Starts with a look-up at once.
    pub(super) fn start(
        query: DnsQuery,
        resolver: DnsResolver,
        table: &Arc<SourceTable>,
        changes: &Rc<SourceChanges>,
    ) -> Self {
        let kind = match query {
            DnsQuery::Host(_) => MemberSourceKind::Dns,
            DnsQuery::Service(_) => MemberSourceKind::Srv,
        };
        let key = (kind, query.name().into());
        let source = table.add(key.clone(), query.name().to_owned());
        let state = Rc::new(NameState::default());
        let lookups = NameLookups {
            query,
            resolver,
            state: Rc::clone(&state),
            source: Arc::clone(&source),
            changes: Rc::clone(changes),
        };
        Self {
            state,
            task: spawn_local(lookups.run()).abort_handle(),
            table: Arc::clone(table),
            key,
            source,
        }
    }

    /// Looks the name up at once.
    pub(super) fn refresh(&self) {
        self.state.refresh.notify_one();
    }

    /// The last good answer.
    pub(super) fn answer(&self) -> Option<DnsAnswer> {
        self.state.answer.borrow().clone()
    }

    /// True after the first look-up, good or bad.
    pub(super) fn is_looked_up(&self) -> bool {
        *self.state.is_looked_up.borrow()
    }
}

/// Repeated look-ups of one name.
struct NameLookups {
    query: DnsQuery,
    resolver: DnsResolver,
    state: Rc<NameState>,
    source: Arc<SourceState>,
    changes: Rc<SourceChanges>,
}

impl NameLookups {
    async fn run(self) {
        let mut random = Random::from_system();
        let mut failures = 0_u32;
        loop {
            let known = self.state.answer.borrow().clone();
            let found = look_up(&self.resolver, &self.query, known.as_ref()).await;
            let pause = match found {
                Ok(found) => {
                    failures = 0;
                    self.succeed(found)
                }
                Err(cause) => {
                    failures = failures.saturating_add(1);
                    self.fail(&cause);
                    retry_pause(failures, &mut random)
                }
            };
            // The end of the pause and a reload have the same effect.
            let _ = timeout(pause, self.state.refresh.notified()).await;
        }
    }

    /// Records a good answer; returns the time until the next look-up.
    fn succeed(&self, found: TimedAnswer<DnsAnswer>) -> Duration {
        let TimedAnswer { answer, ttl } = found;
        let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
        let is_new = self.state.answer.borrow().as_ref() != Some(&answer);
        let texts = is_new.then(|| answer.texts());
        let count = texts.as_ref().map(Vec::len);
        if self.source.succeed(texts, Some(ttl)) {
            let count = self.source.answer_len();
            tracing::info!(target: "discovery", name = self.query.name(), count, "name resolves again");
        } else if let Some(count) = count {
            tracing::debug!(target: "discovery", name = self.query.name(), count, "name resolved");
        }
        if is_new {
            self.state.answer.replace(Some(answer));
        }
        self.looked_up(is_new);
        ttl
    }

    fn fail(&self, cause: &str) {
        let name = self.query.name();
        let kept = self.source.answer_len();
        if self.source.fail(cause.to_owned()) {
            tracing::warn!(target: "discovery", name, error = cause, kept, "name does not resolve");
        }
        self.looked_up(false);
    }

    /// Reports a change; the first look-up is one, as checks wait for it.
    fn looked_up(&self, is_new: bool) {
        let is_first = !self.state.is_looked_up.replace(true);
        if is_new || is_first {
            self.changes.add(SourceChange::Name(self.query.clone()));
        }
    }
}

/// Makes one look-up. `known` is the last good answer.
pub(super) async fn look_up(
    resolver: &DnsResolver,
    query: &DnsQuery,
    known: Option<&DnsAnswer>,
) -> Result<TimedAnswer<DnsAnswer>, String> {
    match query {
        DnsQuery::Host(host) => {
            let known = known.map_or(&[][..], DnsAnswer::host);
            let found = resolver.host(host, known).await?;
            Ok(TimedAnswer {
                answer: DnsAnswer::Host(found.answer),
                ttl: found.ttl,
            })
        }
        DnsQuery::Service(service) => {
            let known = known.map_or(&[][..], DnsAnswer::service);
            let found = resolver.service(service, known).await?;
            Ok(TimedAnswer {
                answer: DnsAnswer::Service(found.answer),
                ttl: found.ttl,
            })
        }
    }
}

/// Time until the next look-up after `failures` in a row. Jitter keeps thousands of names from
/// hitting a DNS server together when it is back.
fn retry_pause(failures: u32, random: &mut Random) -> Duration {
    let step = failures.saturating_sub(1);
    let pause = backoff::doubled(RETRY_INTERVAL, step, MAX_RETRY_INTERVAL);
    pause.mul_f64(0.9 + 0.2 * random.unit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_names_are_looked_up_after_1_s_doubling_to_30_s() {
        let mut random = Random::seeded(1);
        for (failures, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (99, 30)] {
            let pause = retry_pause(failures, &mut random).as_secs_f64();
            let expected = f64::from(seconds);
            assert!(
                (pause - expected).abs() <= expected / 10.0 + 0.001,
                "{failures}: {pause}"
            );
        }
    }
}
