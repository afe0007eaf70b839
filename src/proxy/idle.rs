//! Idle HTTP/1 connections to backends, kept for the next exchange: one store per worker, last in
//! first out, so that the others can time out when load falls.
//!
//! A connection taken from here was open and had nothing to read a moment ago (RFC 9112 section
//! 9.3). It can still be stale when the request arrives; the retry rules deal with that.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use crate::{
    base::hasher::NumberBuild,
    config::model::KeepaliveConfig,
    net::{stream::Stream, tls::TlsStream},
    pool::{BackendLease, BackendState},
};

/// A connection to a backend, between or during exchanges.
#[derive(Debug)]
pub struct BackendConnection {
    /// The stream.
    pub stream: Stream,
    /// Time of the connect, for `keepalive.max_age`.
    pub born: Instant,
    /// Exchanges carried so far.
    pub exchanges: u64,
    /// Bytes written to it, before encryption.
    pub written: u64,
    /// PROXY header that it began with. It identifies one client, so the connection is reused for
    /// that client only.
    proxy_header: Option<Box<[u8]>>,
    /// `Backend::transport_epoch` at the connect: it changes when a reload changes TLS or the
    /// protocol.
    transport_epoch: u64,
    /// Address connected to; only for a backend given by name, from the first time it is kept.
    peer: Option<SocketAddr>,
    /// A read has found the backend's FIN.
    pub ended: bool,
}

impl BackendConnection {
    /// A new connection to a backend in its `transport_epoch`, begun with `proxy_header` if any.
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

    /// Bytes given to the socket, PROXY header and TLS records included: the number that the
    /// backend's kernel acknowledges, which shows how much of a request has arrived.
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

/// The idle connections to one backend, the oldest first.
#[derive(Debug)]
struct IdleList {
    state: Arc<BackendState>,
    kept: Vec<IdleConnection>,
}

/// The idle connections of one worker, by backend.
#[derive(Debug, Default)]
pub struct IdleConnections {
    entries: HashMap<usize, IdleList, NumberBuild>,
}

/// Key of a backend. Its state stays at one address as long as an entry of ours refers to it, so
/// that the address is a key that costs nothing to make and to compare.
pub(super) fn key(state: &Arc<BackendState>) -> usize {
    Arc::as_ptr(state) as usize
}

impl IdleConnections {
    /// Takes the youngest usable connection to the backend of `lease`: open, within its limits, of
    /// the same `transport_epoch`, and begun with the same `proxy_header`, if any.
    pub fn take(
        &mut self,
        lease: &BackendLease,
        proxy_header: Option<&[u8]>,
        transport_epoch: u64,
        now: Instant,
    ) -> Option<BackendConnection> {
        let entry = self.entries.get_mut(&key(&lease.state))?;
        let fits = |kept: &IdleConnection| {
            kept.connection.transport_epoch == transport_epoch
                && kept.connection.proxy_header.as_deref() == proxy_header
        };
        while let Some(place) = entry.kept.iter().rposition(fits) {
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
            .or_insert_with(|| IdleList {
                state: Arc::clone(&lease.state),
                kept: Vec::new(),
            });
        // A connection with a PROXY header is of use to one client only: without this, connections
        // of clients that left would fill the list.
        if connection.proxy_header.is_some() && entry.kept.len() >= rules.idle_per_backend.max(1) {
            entry.kept.remove(0);
            entry.state.metrics.mine().connections_idle.sub(1);
        }
        if entry.kept.len() < rules.idle_per_backend {
            let time_left = rules.max_age.map(|limit| limit.saturating_sub(age));
            let until =
                now + time_left.map_or(rules.idle_timeout, |left| left.min(rules.idle_timeout));
            entry.kept.push(IdleConnection { connection, until });
            entry.state.metrics.mine().connections_idle.add(1);
        }
    }

    /// Closes connections that were idle for too long, were closed by the backend, go to an address
    /// that the backend's name lacks by now, or belong to a backend that was removed or is down.
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

    /// Closes up to `most` connections, the longest idle of each backend first; returns how many.
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

    /// Closes all connections, at the end of the worker.
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
        pool::{
            ResolvedAddresses,
            fixture::{pick, pool_of},
        },
    };

    #[tokio::test]
    async fn a_connection_to_an_address_that_its_name_has_lost_is_not_reused() {
        let name = BackendAddress::Name {
            host: "app.test".into(),
            port: 80,
        };
        let pool = pool_of(&[name], None);
        let lease = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
        let rules = KeepaliveConfig::default();
        let mut idle = IdleConnections::default();
        let resolve_to = |addresses| {
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
            resolve_to(if moment == 1 {
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
            resolve_to(vec![other]);
            if moment == 2 {
                idle.sweep(now + Duration::from_millis(1));
                assert_eq!(count(), 0);
            }
            assert!(idle.take(&lease, None, 0, now).is_none(), "{moment}");
            assert_eq!(count(), 0);
        }
    }
}
