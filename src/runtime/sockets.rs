//! The listening sockets: bound before a generation is committed, handed to the workers after it.
//!
//! A socket stays open while any listener has its key (transport and address), also one of another
//! name: closing a `SO_REUSEPORT` socket resets the connections in its queue.

use std::{collections::HashMap, io};

use super::worker::{WorkerCommand, WorkerThreads};
use crate::{
    base::{
        address::BindAddress,
        socket_key::{SocketKey, Transport},
    },
    config::model::{Config, ListenerConfig, ListenerProtocol},
    net::listen::{self, BindError, ListenOptions, ListeningSocket},
};

/// Properties of a socket that may change while it stays open.
#[derive(Clone, PartialEq)]
struct SocketSettings {
    options: ListenOptions,
    protocol: ListenerProtocol,
}

/// Open sockets by key, one per worker.
type BoundSockets = HashMap<SocketKey, (SocketSettings, Vec<ListeningSocket>)>;

/// Our own descriptors of the sockets that the workers accept on, one per worker.
#[derive(Default)]
pub(super) struct ListeningSockets {
    open: BoundSockets,
}

/// A socket bound for a generation to come.
struct NewSocket {
    key: SocketKey,
    /// Our own descriptors.
    own: Vec<ListeningSocket>,
    /// The workers' descriptors of the same sockets.
    of_workers: Vec<ListeningSocket>,
}

/// Sockets bound for a generation to come. Dropping them closes them and leaves no trace.
#[derive(Default)]
pub(super) struct PreparedSockets {
    new: Vec<NewSocket>,
    wanted: HashMap<SocketKey, SocketSettings>,
}

/// A socket that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct SocketError {
    pub(super) key: SocketKey,
    #[source]
    pub(super) error: BindError,
}

impl SocketError {
    /// An error of a socket that accepts connections.
    pub(super) fn tcp(error: BindError) -> Self {
        let key = SocketKey::tcp(error.address.clone());
        Self { key, error }
    }
}

impl Drop for PreparedSockets {
    fn drop(&mut self) {
        self.new.iter().for_each(|new| remove_file(&new.key));
    }
}

impl ListeningSockets {
    /// Binds the sockets of `config` that are not open yet.
    pub(super) fn prepare(
        &self,
        config: &Config,
        workers: usize,
    ) -> Result<PreparedSockets, SocketError> {
        self.probe_new(config)?;
        let mut prepared = PreparedSockets::default();
        for listener in &config.listeners {
            for key in listener.sockets() {
                let options = options(listener);
                let wanted = SocketSettings {
                    options: options.clone(),
                    protocol: listener.protocol,
                };
                prepared.wanted.insert(key.clone(), wanted);
                if self.open.contains_key(&key) {
                    continue;
                }
                // `:80` and `127.0.0.1:80` at once or one after the other: the socket that is in
                // the way is our own.
                let mut new = prepared.new.iter();
                let is_ours =
                    self.has_port_of(&key) || new.any(|new| new.key.shares_port_with(&key));
                let bound = bind(&key, &options, workers, is_ours);
                let new = bound.map_err(|error| SocketError {
                    key: key.clone(),
                    error,
                })?;
                prepared.new.push(new);
            }
        }
        Ok(prepared)
    }

    /// Fails if another process listens on a port that is new to us. Before the first is bound:
    /// afterwards our own would be in the way of `:80` beside `127.0.0.1:80`.
    fn probe_new(&self, config: &Config) -> Result<(), SocketError> {
        let keys = config.listeners.iter().flat_map(ListenerConfig::sockets);
        for key in keys.filter(|key| !self.open.contains_key(key)) {
            if self.has_port_of(&key) || is_any_port(&key) {
                continue;
            }
            match key.transport {
                Transport::Tcp => listen::probe(&key.address).map_err(SocketError::tcp)?,
                // `bind` reports it.
                Transport::Udp => {}
            }
        }
        Ok(())
    }

    /// True if we listen on the port of `key`.
    fn has_port_of(&self, key: &SocketKey) -> bool {
        self.open.keys().any(|open| open.shares_port_with(key))
    }

    /// True if we listen on `key`, or on an address that includes it or is part of it.
    pub(super) fn hold(&self, key: &SocketKey) -> bool {
        self.open.keys().any(|open| open.overlaps(key))
    }

    /// Hands new sockets to the workers, changes options, and closes the sockets that no listener
    /// has any more.
    pub(super) fn commit(&mut self, mut prepared: PreparedSockets, workers: &WorkerThreads) {
        let mut wanted = std::mem::take(&mut prepared.wanted);
        for new in prepared.new.drain(..) {
            let mut copies = new.of_workers.into_iter();
            workers.broadcast(|_| Some(WorkerCommand::Listen(new.key.clone(), copies.next()?)));
            debug_assert!(wanted.contains_key(&new.key), "bound because it is wanted");
            if let Some(settings) = wanted.get(&new.key) {
                self.open.insert(new.key, (settings.clone(), new.own));
            }
        }
        let (kept, left): (BoundSockets, BoundSockets) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(key, _)| wanted.contains_key(key));
        self.open = kept;
        close(left, workers);
        for (key, (now, sockets)) in &mut self.open {
            if let Some(new) = wanted.remove(key).filter(|new| new != now) {
                change_settings(key, now, new, sockets, workers);
            }
        }
    }

    /// Closes everything, at the drain.
    pub(super) fn close_all(&mut self, workers: &WorkerThreads) {
        close(std::mem::take(&mut self.open), workers);
    }
}

/// The options of the sockets of `listener`. Clients of http speak first; one that must begin with
/// a PROXY header is refused by its address before it does.
fn options(listener: &ListenerConfig) -> ListenOptions {
    let clients_speak_first = match listener.protocol {
        ListenerProtocol::Http => listener.accept_proxy.is_none(),
        ListenerProtocol::Tcp => false,
    };
    ListenOptions {
        config: listener.socket.clone(),
        clients_speak_first,
    }
}

/// Binds one socket per worker. `is_ours` says that we listen on its port already, so that a socket
/// in the way is no other process.
fn bind(
    key: &SocketKey,
    options: &ListenOptions,
    workers: usize,
    is_ours: bool,
) -> Result<NewSocket, BindError> {
    let own = match (key.transport, is_ours) {
        (Transport::Tcp, false) => listen::bind(&key.address, options, workers),
        (Transport::Tcp, true) => listen::bind_shared_port(&key.address, options, workers),
        (Transport::Udp, _) => Err(error_of(key, io::ErrorKind::Unsupported.into())),
    }?;
    let copies = own.iter().map(ListeningSocket::try_clone);
    let of_workers = copies
        .collect::<io::Result<_>>()
        .map_err(|source| error_of(key, source))?;
    Ok(NewSocket {
        key: key.clone(),
        own,
        of_workers,
    })
}

fn error_of(key: &SocketKey, source: io::Error) -> BindError {
    BindError {
        address: key.address.clone(),
        source,
    }
}

/// Applies new settings to a socket that stays open. Idle connections are closed where the protocol
/// changes: they could never be used again.
fn change_settings(
    key: &SocketKey,
    now: &mut SocketSettings,
    new: SocketSettings,
    sockets: &[ListeningSocket],
    workers: &WorkerThreads,
) {
    if new.protocol != now.protocol {
        workers.broadcast(|_| Some(WorkerCommand::CloseIdle(key.clone())));
    }
    *now = new;
    for socket in sockets {
        if let Err(error) = listen::set_options(socket, &now.options) {
            tracing::warn!(target: "listener", bind = %key, %error, "socket options not changed");
        }
    }
}

fn is_any_port(key: &SocketKey) -> bool {
    matches!(key.address, BindAddress::Ip(address) if address.port() == 0)
}

/// Closes our descriptors of `sockets`, tells the workers to stop accepting on theirs, and removes
/// the files of unix sockets. Ours go first: a client that sees its idle connection closed must be
/// refused if it connects again.
fn close(sockets: BoundSockets, workers: &WorkerThreads) {
    let keys: Vec<_> = sockets.into_keys().collect();
    for key in &keys {
        workers.broadcast(|_| Some(WorkerCommand::Unlisten(key.clone())));
        remove_file(key);
    }
}

fn remove_file(key: &SocketKey) {
    if let BindAddress::Unix(path) = &key.address {
        // Fails if somebody else has removed it.
        let _ = std::fs::remove_file(path);
    }
}
