//! The listening sockets: bound before a generation is committed, handed to the workers after, never closed while a
//! listener keeps its address (a closed `SO_REUSEPORT` socket resets what waits in its queue).

use std::collections::HashMap;

use super::worker::{WorkerCommand, WorkerThreads};
use crate::{
    base::address::BindAddress,
    config::model::{Config, ListenerProtocol, SocketConfig},
    net::listen::{self, BindError, ListeningSocket},
};

/// What the configuration wants of an address.
#[derive(Clone, PartialEq)]
struct SocketSettings {
    options: SocketConfig,
    protocol: ListenerProtocol,
}

/// ListeningSockets by address, one per worker.
type BoundSockets = HashMap<BindAddress, (SocketSettings, Vec<ListeningSocket>)>;

/// Our own descriptors of the sockets that the workers accept on, one per worker.
#[derive(Default)]
pub(super) struct ListeningSockets {
    open: BoundSockets,
}

/// ListeningSockets that are bound for a generation to come; dropping them closes them, and nothing of them stays.
#[derive(Default)]
pub(super) struct PreparedSockets {
    /// With the workers' own descriptors of the same sockets.
    new: Vec<(BindAddress, Vec<ListeningSocket>, Vec<ListeningSocket>)>,
    wanted: HashMap<BindAddress, SocketSettings>,
}

impl Drop for PreparedSockets {
    fn drop(&mut self) {
        self.new.iter().for_each(|(bind, ..)| remove_file(bind));
    }
}

impl ListeningSockets {
    /// Binds the addresses of `config` that are not bound yet.
    pub(super) fn prepare(
        &self,
        config: &Config,
        workers: usize,
    ) -> Result<PreparedSockets, BindError> {
        let mut prepared = PreparedSockets::default();
        let binds = config.listeners.iter().flat_map(|listener| &listener.binds);
        for bind in binds.filter(|bind| !self.open.contains_key(*bind)) {
            // Before the first is bound: afterwards our own would be in the way of `:80` beside `127.0.0.1:80`.
            if !self.has_port_of(bind) && !is_any_port(bind) {
                listen::probe(bind)?;
            }
        }
        for listener in &config.listeners {
            for bind in &listener.binds {
                let wanted = SocketSettings {
                    options: listener.socket.clone(),
                    protocol: listener.protocol,
                };
                prepared.wanted.insert(bind.clone(), wanted);
                if !self.open.contains_key(bind) {
                    // `:80` and `127.0.0.1:80` at once or one after the other: what is in the way is our own.
                    let mut new = prepared.new.iter();
                    let ours =
                        self.has_port_of(bind) || new.any(|(new, ..)| have_one_port(new, bind));
                    let claim = if ours {
                        listen::bind_shared_port
                    } else {
                        listen::bind
                    };
                    let sockets = claim(bind, &listener.socket, workers)?;
                    let copies = sockets.iter().map(ListeningSocket::try_clone);
                    let copies = copies.collect::<Result<_, _>>();
                    let copies = copies.map_err(|source| BindError {
                        address: bind.clone(),
                        source,
                    })?;
                    prepared.new.push((bind.clone(), sockets, copies));
                }
            }
        }
        Ok(prepared)
    }

    /// True if we listen on the port of `bind`.
    fn has_port_of(&self, bind: &BindAddress) -> bool {
        self.open.keys().any(|open| have_one_port(open, bind))
    }

    /// True if we listen on `bind` or on an address that includes it or is part of it.
    pub(super) fn hold(&self, bind: &BindAddress) -> bool {
        self.open.keys().any(|open| overlap(open, bind))
    }

    /// Hands new sockets to the workers, changes options, and gives up the addresses that are not wanted any more.
    pub(super) fn commit(&mut self, mut prepared: PreparedSockets, workers: &WorkerThreads) {
        let mut wanted = std::mem::take(&mut prepared.wanted);
        for (bind, sockets, copies) in prepared.new.drain(..) {
            let mut copies = copies.into_iter();
            workers.broadcast(|_| Some(WorkerCommand::Listen(bind.clone(), copies.next()?)));
            if let Some(new) = wanted.get(&bind) {
                self.open.insert(bind, (new.clone(), sockets));
            }
        }
        let (kept, left): (BoundSockets, BoundSockets) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(bind, _)| wanted.contains_key(bind));
        self.open = kept;
        close(&left, workers);
        drop(left);
        for (bind, (now, sockets)) in &mut self.open {
            let Some(new) = wanted.remove(bind).filter(|new| new != now) else {
                continue;
            };
            if new.protocol != now.protocol {
                workers.broadcast(|_| Some(WorkerCommand::CloseIdle(bind.clone())));
            }
            *now = new;
            for socket in sockets {
                if let Err(error) = listen::set_options(socket, &now.options) {
                    tracing::warn!(target: "listener", %bind, %error, "socket options not changed");
                }
            }
        }
    }

    /// Gives up everything, at the drain.
    pub(super) fn close_all(&mut self, workers: &WorkerThreads) {
        let all = std::mem::take(&mut self.open);
        close(&all, workers);
    }
}

fn have_one_port(one: &BindAddress, other: &BindAddress) -> bool {
    matches!((one, other), (BindAddress::Ip(one), BindAddress::Ip(other)) if one.port() == other.port() && one.port() != 0)
}

fn is_any_port(bind: &BindAddress) -> bool {
    matches!(bind, BindAddress::Ip(address) if address.port() == 0)
}

/// True if one socket on `one` keeps others from listening on `other`.
pub(super) fn overlap(one: &BindAddress, other: &BindAddress) -> bool {
    let is_wide = |bind: &BindAddress| matches!(bind, BindAddress::Ip(address) if address.ip().is_unspecified());
    one == other || have_one_port(one, other) && (is_wide(one) || is_wide(other))
}

/// Tells the workers to leave `sockets`, and removes the files of unix sockets.
fn close(sockets: &BoundSockets, workers: &WorkerThreads) {
    for bind in sockets.keys() {
        workers.broadcast(|_| Some(WorkerCommand::Unlisten(bind.clone())));
        remove_file(bind);
    }
}

fn remove_file(bind: &BindAddress) {
    if let BindAddress::Unix(path) = bind {
        // Gone already if somebody else removed it.
        let _ = std::fs::remove_file(path);
    }
}
