//! Counts connections against the limits that apply to them: `max_connections`, and the listener's
//! limits in all and per client.

use std::{
    collections::hash_map::Entry,
    net::IpAddr,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use super::worker::Worker;
use crate::{
    reason::Reason,
    snapshot::{Daemon, Listener, ListenerState},
};

/// Share of `max_connections` that is kept free by closing idle connections ahead of need.
const HEADROOM_DIVISOR: usize = 16;

/// A connection's place under every limit that applies to it; given back when dropped.
pub(super) struct ConnectionPermit {
    daemon: Arc<Daemon>,
    state: Arc<ListenerState>,
    /// `None` while the client is not known, or where clients have no limit of their own.
    client: Option<IpAddr>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.daemon.connections.fetch_sub(1, Relaxed);
        self.state.active.fetch_sub(1, Relaxed);
        self.state.metrics.mine().active.sub(1);
        let Some(client) = self.client else { return };
        let mut clients = self
            .state
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = clients.entry(client);
        debug_assert!(
            matches!(entry, Entry::Occupied(_)),
            "a counted client has an entry"
        );
        if let Entry::Occupied(mut entry) = entry {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Counts a connection of `peer`. Where a limit is reached, an idle connection is told to close and
/// leaves its place to this one.
///
/// # Errors
/// [`Reason::Overload`] where no place is left.
pub(super) fn acquire_permit(
    worker: &Worker,
    listener: &Listener,
    peer: Option<IpAddr>,
) -> Result<ConnectionPermit, Reason> {
    let daemon = &worker.daemon;
    // Counted before the limit is compared: workers that accept at the same time see each other.
    let all = daemon.connections.fetch_add(1, Relaxed);
    let own = listener.state.active.fetch_add(1, Relaxed);
    listener.state.metrics.mine().active.add(1);
    let permit = ConnectionPermit {
        daemon: Arc::clone(daemon),
        state: Arc::clone(&listener.state),
        client: None,
    };
    let limit = daemon.connection_limit.load(Relaxed);
    if all >= limit && !worker.connections.shed_one() {
        return Err(Reason::Overload);
    }
    // A connection needs a moment to close, so idle ones are told before the limit is reached.
    if all < limit && all >= limit - limit / HEADROOM_DIVISOR {
        worker.connections.shed_one();
    }
    let own_limit = listener.config.limits.connections.unwrap_or(usize::MAX);
    if own >= own_limit && !worker.connections.shed_one_on(&listener.sockets) {
        return Err(Reason::Overload);
    }
    acquire_client_permit(permit, listener, peer)
}

/// Counts the connection against the limit of its client as well.
///
/// # Errors
/// [`Reason::Overload`] where the client has as many as it may.
pub(super) fn acquire_client_permit(
    mut permit: ConnectionPermit,
    listener: &Listener,
    peer: Option<IpAddr>,
) -> Result<ConnectionPermit, Reason> {
    let limits = &listener.config.limits;
    if let (Some(limit), Some(peer)) = (limits.connections_per_client, peer) {
        let mut clients = listener
            .state
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(peer).or_default();
        *count += 1;
        let is_over = *count > limit;
        drop(clients);
        permit.client = Some(peer);
        if is_over {
            return Err(Reason::Overload);
        }
    }
    Ok(permit)
}
