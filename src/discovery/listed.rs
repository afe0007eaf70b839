//! The list of members that a file or etcd has for one pool.

use std::{cell::RefCell, fmt, rc::Rc, sync::Arc};

use tokio::task::AbortHandle;

use super::{
    changes::{SourceChange, SourceChanges},
    source_table::{SourceKey, SourceState, SourceTable},
};
use crate::config::model::{BackendConfig, DiscoverConfig, PoolConfig};

/// Members that a source lists.
pub(super) enum MemberListing {
    /// All of them are right.
    Whole(Vec<BackendConfig>),
    /// Some entries are wrong, with the cause of the first; these are the others.
    #[cfg(feature = "etcd")]
    Partial(Vec<BackendConfig>, String),
}

/// State of a source: shared by its task and the control thread.
pub(super) struct ListedState {
    pool: Arc<str>,
    source: Arc<SourceState>,
    changes: Rc<SourceChanges>,
    members: RefCell<Vec<BackendConfig>>,
}

impl ListedState {
    pub(super) fn new(
        pool: &Arc<str>,
        source: &Arc<SourceState>,
        changes: &Rc<SourceChanges>,
        members: Vec<BackendConfig>,
    ) -> Rc<Self> {
        source.keep(names(&members));
        Rc::new(Self {
            pool: Arc::clone(pool),
            source: Arc::clone(source),
            changes: Rc::clone(changes),
            members: RefCell::new(members),
        })
    }

    /// The members in use.
    pub(super) fn members(&self) -> Vec<BackendConfig> {
        self.members.borrow().clone()
    }

    /// Records what the source lists.
    pub(super) fn succeed(&self, listing: MemberListing) {
        let (members, trouble): (Vec<_>, Option<String>) = match listing {
            MemberListing::Whole(members) => (members, None),
            #[cfg(feature = "etcd")]
            MemberListing::Partial(members, trouble) => (members, Some(trouble)),
        };
        let is_new = *self.members.borrow() != members;
        let (pool, source) = (&self.pool, &self.source.detail);
        let count = members.len();
        let was_failing = self.source.succeed(is_new.then(|| names(&members)), None);
        if let Some(error) = trouble {
            self.fail(&error);
        } else if was_failing {
            tracing::info!(target: "discovery", %pool, %source, count, "source of members is right again");
        }
        if is_new {
            tracing::info!(target: "discovery", %pool, %source, count, "members listed");
            self.members.replace(members);
            self.changes
                .add(SourceChange::Listed(Arc::clone(&self.pool)));
        }
    }

    /// Records that the source cannot be used now.
    pub(super) fn fail(&self, error: &str) {
        let (pool, source) = (&self.pool, &self.source.detail);
        let kept = self.members.borrow().len();
        if self.source.fail(error.to_owned()) {
            tracing::warn!(target: "discovery", %pool, %source, error, kept, "source of members cannot be used");
        }
    }
}

fn names(members: &[BackendConfig]) -> Vec<String> {
    members.iter().map(|one| one.name.to_string()).collect()
}

/// The task that watches a source; it ends when this is dropped.
pub(super) struct ListedTask {
    pub(super) discover: DiscoverConfig,
    /// The configuration that members are checked by.
    pub(super) pool: Rc<RefCell<Arc<PoolConfig>>>,
    pub(super) state: Rc<ListedState>,
    pub(super) task: AbortHandle,
    pub(super) table: Arc<SourceTable>,
    pub(super) key: SourceKey,
}

impl fmt::Debug for ListedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListedTask").field(&self.key).finish()
    }
}

impl Drop for ListedTask {
    fn drop(&mut self) {
        self.task.abort();
        self.table.remove(&self.key, &self.state.source);
    }
}
