//! Changes of sources since the control thread last looked.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc};

use tokio::sync::Notify;

use super::members::DnsQuery;

/// A source with another answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceChange {
    /// A name resolves to something else, or was looked up for the first time.
    Name(DnsQuery),
    /// The source of this pool lists other members.
    Listed(Arc<str>),
    /// The files of the system's resolver have changed.
    Files,
}

/// Changes, each once. Many that come together are one rebuild of a pool.
#[derive(Debug, Default)]
pub(super) struct SourceChanges {
    changes: RefCell<BTreeSet<SourceChange>>,
    added: Notify,
}

impl SourceChanges {
    /// Adds a change, and wakes the control thread.
    pub(super) fn add(&self, change: SourceChange) {
        self.changes.borrow_mut().insert(change);
        self.added.notify_one();
    }

    /// Completes when there are changes.
    pub(super) async fn wait(&self) {
        while self.changes.borrow().is_empty() {
            self.added.notified().await;
        }
    }

    /// Takes all changes.
    pub(super) fn take(&self) -> BTreeSet<SourceChange> {
        self.changes.take()
    }
}
