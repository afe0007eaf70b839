//! Idle connections to backends, kept for the next exchange: one store per worker, last in first out.
//!
//! Whatever is taken from here was quiet a moment ago: nothing to read, not closed (RFC 9112 section 9.3). That it can
//! still be stale when the request arrives is the business of the retry rules.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use crate::{
    base::hasher::NumberBuild,
    config::model::KeepaliveConfig,
    net::{stream::Stream, tls::TlsStream},
    pool::{BackendLease, BackendState},
};

/// A connection to a backend on which an exchange may begin.
#[derive(Debug)]
pub struct BackendConnection {
    /// The stream.
    pub stream: Stream,
    /// When it was made.
    pub born: Instant,
    /// Exchanges it has carried.
    pub exchanges: u64,
    /// Bytes we have written to it.
    pub written: u64,
    /// The PROXY header it began with: it tells of one client, and may carry nothing of another's.
    proxy_header: Option<Box<[u8]>>,
    /// `Pool::transport_epoch` when it was made.
    transport_epoch: u64,
    /// Of a connection to a backend given by name that was kept.
    peer: Option<SocketAddr>,
    /// The backend ended it with a FIN, as far as reading has shown.
    pub ended: bool,
}

impl BackendConnection {
    /// A new connection, made as `transport_epoch` says (`Pool::transport_epoch`), on which a PROXY header was sent if `proxy_header` is one.
    pub fn new(
        stream: Stream,
        proxy_header: Option<&[u8]>,
        transport_epoch: u64,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            born: now,
            exchanges: 0,
            written: 0,
            proxy_header: proxy_header.map(Box::from),
            transport_epoch,
            peer: None,
            ended: false,
        }
    }

    /// Bytes that the backend's system has to acknowledge, if they arrived: what was written, encrypted or not.
    pub fn wire_written(&self) -> u64 {
        let header = self
            .proxy_header
            .as_ref()
            .map_or(0, |header| header.len() as u64);
        header
            + self
                .stream
                .tls()
                .map_or(self.written, TlsStream::wire_written)
    }
}

#[derive(Debug)]
struct IdleConnection {
    connection: BackendConnection,
    until: Instant,
}

#[derive(Debug)]
struct IdleEntry {
    state: Arc<BackendState>,
    kept: Vec<IdleConnection>,
}

/// The idle connections of one worker, by backend.
#[derive(Debug, Default)]
pub struct IdleConnections {
    entries: HashMap<usize, IdleEntry, NumberBuild>,
}

/// A backend's state lives at one address as long as anything refers to it, and an entry does.
pub(super) fn key(state: &Arc<BackendState>) -> usize {
    Arc::as_ptr(state) as usize
}

impl IdleConnections {
    /// The youngest connection to the backend of `lease` that is quiet and not over its limits, that was made as `transport_epoch` says,
    /// and that began with this `proxy_header`, or without one.
    pub fn take(
        &mut self,
        lease: &BackendLease,
        proxy_header: Option<&[u8]>,
        transport_epoch: u64,
        now: Instant,
    ) -> Option<BackendConnection> {
        let entry = self.entries.get_mut(&key(&lease.state))?;
        let is_fit = |kept: &IdleConnection| {
            kept.connection.transport_epoch == transport_epoch
                && kept.connection.proxy_header.as_deref() == proxy_header
        };
        while let Some(place) = entry.kept.iter().rposition(is_fit) {
            let kept = entry.kept.remove(place);
            entry.state.metrics.mine().connections_idle.sub(1);
            let connection = &kept.connection;
            if kept.until > now
                && entry.state.resolves_to(connection.peer)
                && connection.stream.is_idle_and_open()
            {
                return Some(kept.connection);
            }
        }
        None
    }

    /// Keeps `connection` if the rules of the pool allow it; closes it otherwise.
    pub fn put(
        &mut self,
        lease: &BackendLease,
        mut connection: BackendConnection,
        rules: &KeepaliveConfig,
        now: Instant,
    ) {
        let age = now.saturating_duration_since(connection.born);
        let is_expired = rules.max_age.is_some_and(|limit| age >= limit)
            || rules
                .max_requests
                .is_some_and(|limit| connection.exchanges >= limit);
        if is_expired || lease.state.is_removed() || !connection.stream.is_idle_and_open() {
            return;
        }
        if connection.peer.is_none() && lease.state.is_name() {
            connection.peer = connection.stream.peer_addr();
        }
        if !lease.state.resolves_to(connection.peer) {
            return;
        }
        let entry = self
            .entries
            .entry(key(&lease.state))
            .or_insert_with(|| IdleEntry {
                state: Arc::clone(&lease.state),
                kept: Vec::new(),
            });
        // A connection of one client is of use to no other: without this, clients that left would keep the places.
        if connection.proxy_header.is_some() && entry.kept.len() >= rules.idle_per_backend.max(1) {
            entry.kept.remove(0);
            entry.state.metrics.mine().connections_idle.sub(1);
        }
        if entry.kept.len() < rules.idle_per_backend {
            let rest = rules.max_age.map(|limit| limit.saturating_sub(age));
            let until = now + rest.map_or(rules.idle_timeout, |rest| rest.min(rules.idle_timeout));
            entry.kept.push(IdleConnection { connection, until });
            entry.state.metrics.mine().connections_idle.add(1);
        }
    }

    /// Closes what is over its time, was closed by the backend, goes to an address that the backend's name lacks by now,
    /// or belongs to a backend that left or is down.
    pub fn sweep(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let before = entry.kept.len();
            let keeps = entry.state.keeps_idle();
            entry.kept.retain(|kept| {
                keeps
                    && kept.until > now
                    && entry.state.resolves_to(kept.connection.peer)
                    && kept.connection.stream.is_idle_and_open()
            });
            let closed = (before - entry.kept.len()) as u64;
            entry.state.metrics.mine().connections_idle.sub(closed);
            !entry.kept.is_empty()
        });
    }

    /// Closes up to `most`, those first of each backend that have been idle for longest; says how many.
    pub fn shed(&mut self, most: usize) -> usize {
        let mut left = most;
        self.entries.retain(|_, entry| {
            let closed = entry.kept.len().min(left);
            entry.kept.drain(..closed);
            left -= closed;
            entry
                .state
                .metrics
                .mine()
                .connections_idle
                .sub(closed as u64);
            !entry.kept.is_empty()
        });
        most - left
    }

    /// Closes everything, at the end of the worker.
    pub fn clear(&mut self) {
        for (_, entry) in self.entries.drain() {
            let idle = &entry.state.metrics.mine().connections_idle;
            idle.sub(entry.kept.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::{address::BackendAddress, clock, rng::Random},
        net::fixture::pair,
        pool::{ResolvedAddresses, fixture::pool_of},
    };

    #[tokio::test]
    async fn a_connection_to_an_address_that_left_the_answer_is_not_used_again() {
        let name = BackendAddress::Name {
            host: "app.test".into(),
            port: 80,
        };
        let pool = pool_of(&[name], None);
        let lease = pool.pick(&[], &mut Random::seeded(1)).unwrap();
        let rules = KeepaliveConfig::default();
        let mut idle = IdleConnections::default();
        let answer = |addresses| {
            let resolved = ResolvedAddresses::new(addresses, None);
            lease.state.resolved.store(Arc::new(resolved));
        };
        let other = SocketAddr::from(([127, 0, 0, 1], 1));
        let count = || lease.state.metrics.mine().connections_idle.get();
        let now = clock::now();
        // After it was kept, before that, and at the sweep.
        for moment in 0..3 {
            let (_backend, stream) = pair().await;
            let own = stream.peer_addr().unwrap();
            let connection = BackendConnection::new(stream, None, 0, now);
            answer(if moment == 1 {
                vec![other]
            } else {
                vec![own, other]
            });
            idle.put(&lease, connection, &rules, now);
            assert_eq!(count(), u64::from(moment != 1));
            if moment == 0 {
                let kept = idle.take(&lease, None, 0, now).unwrap();
                idle.put(&lease, kept, &rules, now);
            }
            answer(vec![other]);
            if moment == 2 {
                idle.sweep(now + Duration::from_millis(1));
                assert_eq!(count(), 0);
            }
            assert!(idle.take(&lease, None, 0, now).is_none(), "{moment}");
            assert_eq!(count(), 0);
        }
    }
}
