//! The listening sockets: bound before a generation is committed, handed to the workers after, never closed while a
//! listener keeps its address (a closed `SO_REUSEPORT` socket resets what waits in its queue).

use std::collections::HashMap;

use super::worker::{Command, Pool};
use crate::{
    base::address::BindAddress,
    config::model::{Config, SocketOptions},
    net::listen::{self, BindError, Listening},
};

/// Sockets by address, one per worker.
type Bound = HashMap<BindAddress, (SocketOptions, Vec<Listening>)>;

/// Our own descriptors of the sockets that the workers accept on, one per worker.
#[derive(Default)]
pub(super) struct Sockets {
    open: Bound,
}

/// Sockets that are bound for a generation to come; dropping them closes them, and nothing of them stays.
#[derive(Default)]
pub(super) struct Prepared {
    new: Vec<(BindAddress, SocketOptions, Vec<Listening>)>,
    wanted: HashMap<BindAddress, SocketOptions>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.new.iter().for_each(|(bind, ..)| remove_file(bind));
    }
}

impl Sockets {
    /// Binds the addresses of `config` that are not bound yet.
    pub(super) fn prepare(&self, config: &Config, workers: usize) -> Result<Prepared, BindError> {
        let mut prepared = Prepared::default();
        for listener in &config.listeners {
            for bind in &listener.binds {
                prepared
                    .wanted
                    .insert(bind.clone(), listener.socket.clone());
                if !self.open.contains_key(bind) {
                    let sockets = listen::bind(bind, &listener.socket, workers)?;
                    prepared
                        .new
                        .push((bind.clone(), listener.socket.clone(), sockets));
                }
            }
        }
        Ok(prepared)
    }

    /// Hands new sockets to the workers, changes options, and gives up the addresses that are not wanted any more.
    pub(super) fn commit(&mut self, mut prepared: Prepared, pool: &Pool) {
        let wanted = std::mem::take(&mut prepared.wanted);
        for (bind, options, sockets) in prepared.new.drain(..) {
            pool.tell(|index| {
                let socket = sockets.get(index)?.try_clone();
                let socket = socket.inspect_err(
                    |error| tracing::error!(target: "listener", %bind, %error, "cannot accept"),
                );
                Some(Command::Listen(bind.clone(), socket.ok()?))
            });
            self.open.insert(bind, (options, sockets));
        }
        let (kept, left): (Bound, Bound) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(bind, _)| wanted.contains_key(bind));
        self.open = kept;
        close(&left, pool);
        drop(left);
        for (bind, (options, sockets)) in &mut self.open {
            let Some(new) = wanted.get(bind).filter(|new| *new != options) else {
                continue;
            };
            options.clone_from(new);
            for socket in sockets {
                if let Err(error) = listen::set_options(socket, options) {
                    tracing::warn!(target: "listener", %bind, %error, "socket options not changed");
                }
            }
        }
    }

    /// Gives up everything, at the drain.
    pub(super) fn close_all(&mut self, pool: &Pool) {
        let all = std::mem::take(&mut self.open);
        close(&all, pool);
    }
}

/// Tells the workers to leave `sockets`, and removes the files of unix sockets.
fn close(sockets: &Bound, pool: &Pool) {
    for bind in sockets.keys() {
        pool.tell(|_| Some(Command::Unlisten(bind.clone())));
        remove_file(bind);
    }
}

fn remove_file(bind: &BindAddress) {
    if let BindAddress::Unix(path) = bind {
        // Gone already if somebody else removed it.
        let _ = std::fs::remove_file(path);
    }
}
