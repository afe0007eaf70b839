//! Changes of members, with the same steps as a reload (`reload.rs`): compare → prepare → commit →
//! follow → report. Only the pool that a change concerns is built again.

use std::{collections::HashSet, fmt::Write as _, sync::Arc};

use crate::{
    base::clock,
    config::model::BackendConfig,
    discovery::MemberDiscovery,
    health::HealthChecker,
    pool::Pool,
    snapshot::{Daemon, Snapshot},
};

/// Names of members in one line of the log.
const MAX_LOGGED_NAMES: usize = 8;

/// Puts the changes of all sources in force.
pub(super) fn run(daemon: &Daemon, checker: &mut HealthChecker, discovery: &mut MemberDiscovery) {
    for index in discovery.take_changes() {
        change_pool(daemon, checker, discovery, index);
    }
}

fn change_pool(
    daemon: &Daemon,
    checker: &mut HealthChecker,
    discovery: &MemberDiscovery,
    index: usize,
) {
    let snapshot = daemon.snapshot.load_full();
    let Some(old) = snapshot.pools.get(index) else {
        debug_assert!(false, "discovery follows the generation in force");
        return;
    };
    // Compare.
    let members = discovery.members(&old.config);
    let in_force = old.backends.iter().map(|backend| &backend.config);
    if in_force.eq(&members) {
        // The addresses of a backend may have changed all the same.
        discovery.publish(old);
        return;
    }
    // Prepare.
    let Some((next, new)) = prepare(&snapshot, index, &members) else {
        debug_assert!(false, "the pool was there");
        return;
    };
    // Members that came back are put in service, and names get their addresses, before a worker
    // can see them.
    new.apply_overrides(&daemon.overrides());
    new.restore();
    discovery.publish(&new);

    // Commit.
    daemon.snapshot.store(Arc::new(next));

    // Follow.
    checker.apply_members(old, &new);
    old.retire(Some(&new));
    report(old, &new);
}

/// The next snapshot, and its pool at `index`.
fn prepare(
    snapshot: &Snapshot,
    index: usize,
    members: &[BackendConfig],
) -> Option<(Snapshot, Arc<Pool>)> {
    let next = snapshot.with_members(index, members, clock::now())?;
    let new = Arc::clone(next.pools.get(index)?);
    Some((next, new))
}

/// Logs what came and left.
fn report(old: &Pool, new: &Pool) {
    fn names(pool: &Pool) -> HashSet<&str> {
        let members = pool.backends.iter();
        members.map(|backend| &*backend.config.name).collect()
    }
    let (before, after) = (names(old), names(new));
    let added = listed(after.difference(&before).copied());
    let removed = listed(before.difference(&after).copied());
    tracing::info!(target: "discovery", pool = %new.name, members = after.len(), added, removed, "members changed");
}

/// Some of the names, and the number of the others.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    let others = names.len().saturating_sub(MAX_LOGGED_NAMES);
    names.truncate(MAX_LOGGED_NAMES);
    let mut text = names.join(" ");
    if others > 0 {
        // Cannot fail: it is a text.
        let _ = write!(text, " and {others} more");
    }
    text
}
