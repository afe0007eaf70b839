//! The sources of members as status and metrics show them: written by the control thread, read by
//! any.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::base::clock;

/// Kinds of sources, in the order of their words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberSourceKind {
    /// Addresses of a host, by the DNS.
    Dns,
    /// Keys of etcd.
    Etcd,
    /// A watched file.
    File,
    /// SRV records and the addresses of their hosts.
    Srv,
}

impl MemberSourceKind {
    /// The word for it in metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Etcd => "etcd",
            Self::File => "file",
            Self::Srv => "srv",
        }
    }
}

/// Identity of a source: its kind, and the name that is looked up, or the pool that the source is
/// for.
pub type SourceKey = (MemberSourceKind, Arc<str>);

/// Last results of a source.
#[derive(Debug, Clone, Default)]
pub struct SourceView {
    /// The last good answer: addresses, or names of members.
    pub answer: Vec<String>,
    /// Time of that answer, since the Unix epoch; zero before the first.
    pub answered_unix: Duration,
    /// End of the time to live of that answer; `None` for a source that has none.
    pub expires: Option<Instant>,
    /// Cause of the failure, if the last look-up failed.
    pub error: Option<String>,
    /// Time of the first failure since the last good answer.
    pub failing_since: Option<Instant>,
}

/// One source.
#[derive(Debug)]
pub struct SourceState {
    /// Its identity for people: the name, or the file.
    pub detail: String,
    /// Good look-ups.
    pub succeeded: AtomicU64,
    /// Failed look-ups.
    pub failed: AtomicU64,
    view: Mutex<SourceView>,
}

impl SourceState {
    fn new(detail: String) -> Self {
        Self {
            detail,
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            view: Mutex::default(),
        }
    }

    /// A copy of the last results.
    pub fn view(&self) -> SourceView {
        self.lock().clone()
    }

    /// True while the last look-up has failed.
    pub fn is_failing(&self) -> bool {
        self.lock().error.is_some()
    }

    /// Number of members in the last good answer.
    pub fn answer_len(&self) -> usize {
        self.lock().answer.len()
    }

    /// Records a good answer, which is `None` where it is the same as before. True if the look-up
    /// before had failed.
    pub(crate) fn succeed(&self, answer: Option<Vec<String>>, ttl: Option<Duration>) -> bool {
        self.succeeded.fetch_add(1, Relaxed);
        let mut view = self.lock();
        if let Some(answer) = answer {
            view.answer = answer;
        }
        view.answered_unix = clock::unix_now();
        view.expires = ttl.map(|ttl| clock::now() + ttl);
        view.failing_since = None;
        view.error.take().is_some()
    }

    /// Records members that are in use without an answer: those that were kept from before.
    pub(super) fn keep(&self, answer: Vec<String>) {
        self.lock().answer = answer;
    }

    /// Records a failure. True if it is news: the first since a good answer, or another than the
    /// last one.
    pub(crate) fn fail(&self, error: String) -> bool {
        self.failed.fetch_add(1, Relaxed);
        let mut view = self.lock();
        view.failing_since.get_or_insert_with(clock::now);
        let is_news = view.error.as_ref() != Some(&error);
        view.error = Some(error);
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, SourceView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sources in use.
#[derive(Debug, Default)]
pub struct SourceTable(Mutex<BTreeMap<SourceKey, Arc<SourceState>>>);

impl SourceTable {
    /// All sources, in the order of their keys.
    pub fn all(&self) -> Vec<(SourceKey, Arc<SourceState>)> {
        let table = self.lock();
        let entries = table.iter();
        entries
            .map(|(key, state)| (key.clone(), Arc::clone(state)))
            .collect()
    }

    /// Adds a source. One of that key and detail that is there already is handed out again.
    pub(crate) fn add(&self, key: SourceKey, detail: String) -> Arc<SourceState> {
        let mut table = self.lock();
        let known = table.get(&key).filter(|known| known.detail == detail);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let state = Arc::new(SourceState::new(detail));
        table.insert(key, Arc::clone(&state));
        state
    }

    /// Removes a source, unless another one has its key by now.
    pub(super) fn remove(&self, key: &SourceKey, state: &Arc<SourceState>) {
        let mut table = self.lock();
        if table
            .get(key)
            .is_some_and(|known| Arc::ptr_eq(known, state))
        {
            table.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SourceKey, Arc<SourceState>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
