//! Messages to the service manager, sd_notify(3); without `NOTIFY_SOCKET` nothing happens.
//!
//! One socket for the life of the process: if each ping opened one, a shortage of descriptors would
//! look like a hang, and systemd would kill us. It never blocks; [`watch`] sends again what a full
//! queue did not take.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::snapshot::Daemon;

/// Interval at which unsent messages are sent again.
const RESEND_INTERVAL: Duration = Duration::from_millis(50);
/// Unsent messages kept; the oldest are dropped.
const MAX_UNSENT: usize = 32;

/// Socket of the service manager.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// In order: STOPPING must not overtake READY.
    unsent: RefCell<VecDeque<String>>,
    /// Wakes [`watch`] when a message is unsent.
    wake: Notify,
    /// A failure was logged; the next is logged after a success.
    has_failed: Cell<bool>,
}

impl ServiceManager {
    /// Opens the socket that `NOTIFY_SOCKET` names: a path, or `@name` for an abstract one.
    pub(super) fn from_environment() -> Rc<Self> {
        let manager = match env::var_os("NOTIFY_SOCKET") {
            None => Self::default(),
            Some(name) => match open(&name) {
                Ok(socket) => Self {
                    socket: Some(socket),
                    ..Self::default()
                },
                Err(error) => {
                    tracing::warn!(target: "daemon", socket = %name.display(), %error, "sd_notify failed");
                    Self::default()
                }
            },
        };
        Rc::new(manager)
    }

    /// Reports that the daemon serves, after the start and after a reload.
    pub(super) fn ready(&self, status: &str) {
        self.send(format!("READY=1\nSTATUS={status}\n"));
    }

    /// Reports that a reload has begun; [`ready`](Self::ready) ends it. systemd compares the time
    /// with its own, to tell this reload from an earlier one.
    pub(super) fn reloading(&self) {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(tv_sec) * 1_000_000 + i128::from(tv_nsec) / 1_000;
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
    }

    /// Reports that the drain has begun.
    pub(super) fn stopping(&self, status: &str) {
        self.send(format!("STOPPING=1\nSTATUS={status}\n"));
    }

    fn watchdog(&self) {
        // A ping behind other messages is as good as another one.
        if self.unsent.borrow().is_empty() {
            self.send("WATCHDOG=1\n".to_owned());
        }
    }

    fn send(&self, message: String) {
        if self.socket.is_none() {
            return;
        }
        let mut unsent = self.unsent.borrow_mut();
        if unsent.len() >= MAX_UNSENT {
            unsent.pop_front();
        }
        unsent.push_back(message);
        drop(unsent);
        self.flush();
    }

    fn flush(&self) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        let mut unsent = self.unsent.borrow_mut();
        while let Some(message) = unsent.front() {
            let sent = socket.send_to_addr(message.as_bytes(), address);
            let again = matches!(&sent, Err(error) if is_full(error));
            match sent {
                Ok(_) => self.has_failed.set(false),
                Err(error) => {
                    if !self.has_failed.replace(true) {
                        tracing::warn!(target: "daemon", %error, notification = message.trim_end(), "sd_notify failed");
                    }
                }
            }
            if again {
                self.wake.notify_one();
                return;
            }
            unsent.pop_front();
        }
    }
}

/// True when the receiver's queue is full: a later attempt may succeed.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Time within which the service manager wants a ping: `WATCHDOG_USEC`, unless `WATCHDOG_PID` names
/// another process (a wrapper that passed its environment on).
fn watchdog_limit() -> Option<Duration> {
    let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
    let is_other = env::var_os("WATCHDOG_PID").is_some()
        && number("WATCHDOG_PID") != Some(u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && !is_other)?;
    Some(Duration::from_micros(micros))
}

/// Pings the watchdog while all workers make progress, and sends again what could not be sent.
/// Never ends.
pub(super) async fn watch(manager: Rc<ServiceManager>, daemon: Arc<Daemon>) {
    if manager.socket.is_none() {
        return std::future::pending().await;
    }
    tokio::join!(ping(&manager, &daemon), async {
        loop {
            manager.wake.notified().await;
            sleep(RESEND_INTERVAL).await;
            manager.flush();
        }
    });
}

async fn ping(manager: &ServiceManager, daemon: &Daemon) {
    let Some(limit) = watchdog_limit() else {
        return;
    };
    // Half the limit, as sd_watchdog_enabled(3) recommends.
    let mut tick = interval((limit / 2).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = vec![None; daemon.workers.len()];
    loop {
        tick.tick().await;
        let now: Vec<_> = daemon
            .workers
            .iter()
            .map(|worker| Some(worker.heartbeat.load(Relaxed)))
            .collect();
        let stuck = now.iter().zip(&last).position(|(now, last)| now == last);
        match stuck {
            None => manager.watchdog(),
            Some(worker) => tracing::error!(target: "daemon", worker, "worker is stuck"),
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str) -> ServiceManager {
        ServiceManager {
            socket: Some(open(OsStr::new(name)).unwrap()),
            ..ServiceManager::default()
        }
    }

    fn receiver(name: &str) -> UnixDatagram {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn received(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 1024];
        let next = || Some(socket.recv(&mut buffer).ok()?).map(|count| (count, buffer));
        let messages = std::iter::from_fn(next);
        messages
            .map(|(count, buffer)| String::from_utf8_lossy(&buffer[..count]).into_owned())
            .collect()
    }

    #[test]
    fn a_full_socket_blocks_nothing_and_its_messages_come_later_in_order() {
        let name = format!("balancer-notify-{}", std::process::id());
        let socket = receiver(&name);
        let manager = manager(&format!("@{name}"));
        let mut sent = 0;
        while manager.unsent.borrow().is_empty() {
            manager.ready(&sent.to_string());
            sent += 1;
        }
        manager.watchdog();
        manager.stopping("draining");
        assert_eq!(manager.unsent.borrow().len(), 2, "no ping behind others");
        let mut all = received(&socket);
        manager.flush();
        all.extend(received(&socket));
        let ready = (0..sent).map(|number| format!("READY=1\nSTATUS={number}\n"));
        let stopping = "STOPPING=1\nSTATUS=draining\n".to_owned();
        assert_eq!(all, ready.chain([stopping]).collect::<Vec<_>>());
    }

    #[test]
    fn a_receiver_that_is_gone_costs_nothing() {
        let manager = manager("@balancer-no-such-socket");
        manager.ready("x");
        assert!(manager.unsent.borrow().is_empty());
        assert!(manager.has_failed.get(), "logged once");
    }
}
