//! Signals, as messages for the control thread.
//!
//! They are blocked from the first statement of `main` on ([`hold`]), so none is lost and none
//! kills the process before [`Signals`] receives it. A signal that comes while the daemon starts
//! waits until the control thread asks for it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::{Handle, Signals as Stream},
};
use tokio::sync::mpsc;

use crate::net::sys;

/// Signals that the daemon acts on or reports.
const HANDLED_SIGNALS: [libc::c_int; 6] = [SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];

/// Blocks the daemon's signals until it receives them. Has to be the first statement of `main`: a
/// thread started before would not inherit the mask, and the kernel could kill the process through
/// it.
pub fn hold() {
    sys::block_signals(&HANDLED_SIGNALS);
}

/// Restores the default handling, for commands that do not become the daemon.
pub fn release() {
    sys::unblock_signals(&HANDLED_SIGNALS);
}

/// Meaning of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// HUP.
    Reload,
    /// TERM or INT: drain; the second one exits at once.
    Stop,
    /// QUIT: drain; further ones change nothing.
    Drain,
    /// USR1.
    ReopenLogs,
    /// USR2, which has no meaning.
    Unused,
}

impl Signal {
    /// True for the signals that end the daemon.
    pub(super) fn is_end(self) -> bool {
        matches!(self, Self::Stop | Self::Drain)
    }
}

/// Reports a signal without a meaning.
pub(super) fn ignore() {
    tracing::warn!(target: "daemon", "signal USR2 ignored: it has no meaning");
}

/// Signals received since the start of the process.
pub(super) struct Signals {
    receiver: mpsc::UnboundedReceiver<Signal>,
    /// Received, then put back until they can be acted on.
    kept: VecDeque<Signal>,
    /// A HUP waits. Further ones until its reload begins are the same request.
    reload_waits: Arc<AtomicBool>,
    handle: Handle,
}

impl Signals {
    /// Starts a thread that receives the signals.
    pub(super) fn new() -> io::Result<Self> {
        let mut stream = Stream::new(HANDLED_SIGNALS)?;
        let handle = stream.handle();
        let (sender, receiver) = mpsc::unbounded_channel();
        let reload_waits = Arc::new(AtomicBool::new(false));
        let waits = Arc::clone(&reload_waits);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                // The only thread in which they are not blocked, so the kernel chooses it.
                sys::unblock_signals(&HANDLED_SIGNALS);
                for signal in stream.forever() {
                    let signal = match signal {
                        SIGHUP if waits.swap(true, SeqCst) => continue,
                        SIGHUP => Signal::Reload,
                        SIGTERM | SIGINT => Signal::Stop,
                        SIGQUIT => Signal::Drain,
                        SIGUSR1 => Signal::ReopenLogs,
                        SIGUSR2 => Signal::Unused,
                        _ => continue,
                    };
                    if sender.send(signal).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            receiver,
            kept: VecDeque::new(),
            reload_waits,
            handle,
        })
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Signal {
        if let Some(signal) = self.kept.pop_front() {
            return signal;
        }
        match self.receiver.recv().await {
            Some(signal) => {
                if signal == Signal::Reload {
                    self.reload_waits.store(false, SeqCst);
                }
                signal
            }
            // The thread has ended: no signal will come.
            None => std::future::pending().await,
        }
    }

    /// Puts back signals that [`next`](Self::next) returned, in their order; of several HUPs one
    /// remains.
    pub(super) fn put_back(&mut self, mut signals: Vec<Signal>) {
        let mut reloads = 0;
        signals.retain(|signal| {
            reloads += usize::from(*signal == Signal::Reload);
            *signal != Signal::Reload || reloads == 1
        });
        for signal in signals.into_iter().rev() {
            self.kept.push_front(signal);
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
    }
}
