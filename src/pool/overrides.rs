//! Overrides: a state or a weight that the operator has set for a backend, in place of the file's
//! and of the checks'.
//!
//! A backend's health holds those in force. The [`OverrideTable`] of the process holds all of them
//! by pool and address, also of backends that are away: reload and restart apply it. Pure: time is
//! an argument. Read next: `operator.rs`, which applies them.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use crate::base::address::BackendAddress;

/// Highest number of backends with an override. Beyond it, those that are in no configuration are
/// forgotten, the oldest first.
const MAX_OVERRIDES: usize = 10_000;

/// A state that an operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorState {
    /// No new work; sticky clients stay.
    Draining,
    /// No new work at all.
    Maintenance,
}

impl OperatorState {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::Draining, Self::Maintenance];

    /// The name in lower case, as that of the state of health.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }
}

/// End of an override.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideEnd {
    /// For this process: a change of the system's time does not move it.
    pub at: Instant,
    /// Since the Unix epoch, for the next process and for people.
    pub unix: Duration,
}

/// One override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorOverride<T> {
    /// The state or the weight.
    pub value: T,
    /// The operator: a user of this machine, or `token`.
    pub by: String,
    /// Its start, since the Unix epoch.
    pub since_unix: Duration,
    /// `None`: until an operator ends it.
    pub end: Option<OverrideEnd>,
    /// Text of the operator, one line.
    pub note: Option<String>,
}

impl<T> OperatorOverride<T> {
    fn has_ended(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| end.at <= now)
    }

    /// The operator and the note in one line.
    pub(crate) fn cause(&self) -> String {
        match &self.note {
            Some(note) => format!("set by {}: {note}", self.by),
            None => format!("set by {}", self.by),
        }
    }
}

/// The overrides of one backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendOverrides {
    /// In place of the state by checks and ejection.
    pub state: Option<OperatorOverride<OperatorState>>,
    /// In place of the file's weight, 0..=256.
    pub weight: Option<OperatorOverride<u16>>,
}

impl BackendOverrides {
    /// True without any override.
    pub const fn is_empty(&self) -> bool {
        self.state.is_none() && self.weight.is_none()
    }

    /// Removes those that have ended by `now`, and returns the operators who set them.
    fn expire(&mut self, now: Instant) -> Vec<String> {
        let state = self.state.take_if(|one| one.has_ended(now));
        let weight = self.weight.take_if(|one| one.has_ended(now));
        let state = state.map(|one| one.by);
        state.into_iter().chain(weight.map(|one| one.by)).collect()
    }

    fn first_end(&self) -> Option<Instant> {
        let state = self.state.as_ref().and_then(|one| one.end);
        let weight = self.weight.as_ref().and_then(|one| one.end);
        state.into_iter().chain(weight).map(|end| end.at).min()
    }

    fn newest_start(&self) -> Duration {
        let state = self.state.as_ref().map(|one| one.since_unix);
        let weight = self.weight.as_ref().map(|one| one.since_unix);
        state.max(weight).unwrap_or_default()
    }
}

/// A backend by the name of its pool and by its address, as state is adopted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OverrideKey {
    /// The name of the pool.
    pub pool: String,
    /// The address as configured.
    pub address: String,
}

impl OverrideKey {
    /// The key of a backend.
    pub fn new(pool: &str, address: &BackendAddress) -> Self {
        Self {
            pool: pool.to_owned(),
            address: address.to_string(),
        }
    }
}

/// An override whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedOverride {
    /// Its backend.
    pub key: OverrideKey,
    /// The operators who had set it.
    pub by: String,
    /// The overrides that stay.
    pub remaining: BackendOverrides,
}

/// All overrides of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverrideTable {
    backends: BTreeMap<OverrideKey, BackendOverrides>,
}

impl OverrideTable {
    /// The overrides of a backend; empty without any.
    pub fn get(&self, key: &OverrideKey) -> BackendOverrides {
        self.backends.get(key).cloned().unwrap_or_default()
    }

    /// The same by pool and address, without a copy of them where there are no overrides at all.
    pub(super) fn find(&self, pool: &str, address: &BackendAddress) -> BackendOverrides {
        if self.backends.is_empty() {
            return BackendOverrides::default();
        }
        self.get(&OverrideKey::new(pool, address))
    }

    /// Replaces the overrides of a backend.
    pub fn set(&mut self, key: OverrideKey, overrides: BackendOverrides) {
        if overrides.is_empty() {
            self.backends.remove(&key);
        } else {
            self.backends.insert(key, overrides);
        }
    }

    /// All backends with overrides, by pool and address.
    pub fn iter(&self) -> impl Iterator<Item = (&OverrideKey, &BackendOverrides)> {
        self.backends.iter()
    }

    /// The first end of an override.
    pub fn next_end(&self) -> Option<Instant> {
        let ends = self.backends.values();
        ends.filter_map(BackendOverrides::first_end).min()
    }

    /// Removes the overrides whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<EndedOverride> {
        let mut ended = Vec::new();
        self.backends.retain(|key, overrides| {
            let by = overrides.expire(now);
            if !by.is_empty() {
                ended.push(EndedOverride {
                    key: key.clone(),
                    by: by.join(" and "),
                    remaining: overrides.clone(),
                });
            }
            !overrides.is_empty()
        });
        ended
    }

    /// Forgets the oldest overrides of backends that are not `present`, if there are too many.
    pub fn forget_absent(
        &mut self,
        present: impl FnOnce() -> HashSet<OverrideKey>,
    ) -> Vec<OverrideKey> {
        let excess = self.backends.len().saturating_sub(MAX_OVERRIDES);
        if excess == 0 {
            return Vec::new();
        }
        let present = present();
        let absent = self.backends.iter();
        let absent = absent.filter(|(key, _)| !present.contains(key));
        let mut absent: Vec<_> = absent
            .map(|(key, overrides)| (overrides.newest_start(), key.clone()))
            .collect();
        absent.sort_unstable();
        absent.truncate(excess);
        let forgotten: Vec<_> = absent.into_iter().map(|(_, key)| key).collect();
        for key in &forgotten {
            self.backends.remove(key);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn key(pool: &str, address: usize) -> OverrideKey {
        OverrideKey {
            pool: pool.to_owned(),
            address: format!("10.0.0.1:{address}"),
        }
    }

    fn one<T>(value: T, since: u64, end: Option<Instant>) -> OperatorOverride<T> {
        OperatorOverride {
            value,
            by: "root".to_owned(),
            since_unix: Duration::from_secs(since),
            end: end.map(|at| OverrideEnd {
                at,
                unix: Duration::ZERO,
            }),
            note: None,
        }
    }

    #[test]
    fn state_and_weight_end_each_at_its_own_time() {
        let now = clock::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut table = OverrideTable::default();
        assert_eq!(table.next_end(), None);
        let both = BackendOverrides {
            state: Some(one(OperatorState::Draining, 1, Some(at(20)))),
            weight: Some(one(7, 1, Some(at(10)))),
        };
        table.set(key("app", 1), both);
        let for_ever = BackendOverrides {
            weight: Some(one(0, 1, None)),
            ..BackendOverrides::default()
        };
        table.set(key("app", 2), for_ever);
        assert_eq!(table.next_end(), Some(at(10)));
        assert_eq!(table.expire(at(9)), []);
        let ended = table.expire(at(10));
        assert_eq!((ended.len(), &ended[0].key), (1, &key("app", 1)));
        assert!(ended[0].remaining.weight.is_none() && ended[0].remaining.state.is_some());
        assert_eq!(table.next_end(), Some(at(20)));
        assert!(table.expire(at(20))[0].remaining.is_empty());
        assert_eq!(table.next_end(), None);
        assert_eq!(table.iter().count(), 1);
        table.set(key("app", 2), BackendOverrides::default());
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn beyond_the_limit_the_oldest_of_absent_backends_are_forgotten() {
        let mut table = OverrideTable::default();
        for number in 0..MAX_OVERRIDES + 2 {
            let overrides = BackendOverrides {
                weight: Some(one(1, number as u64, None)),
                ..BackendOverrides::default()
            };
            table.set(key("app", number), overrides);
        }
        let present = || HashSet::from([key("app", 0)]);
        let forgotten = table.forget_absent(present);
        assert_eq!(forgotten, [key("app", 1), key("app", 2)]);
        assert_eq!(table.forget_absent(present), []);
        assert!(!table.get(&key("app", 0)).is_empty());
    }
}
