//! Signals, as messages for the control thread.
//!
//! They are blocked from the first statement of `main` on ([`hold`]), so none is lost and none ends the process before
//! [`Signals`] receives them. What comes while the daemon starts waits until it is asked for.

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

/// Every signal that the daemon answers.
const HANDLED_SIGNALS: [libc::c_int; 6] = [SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2];

/// Keeps the daemon's signals pending until it receives them. The first statement of `main`: threads inherit it.
pub fn hold() {
    sys::block_signals(&HANDLED_SIGNALS);
}

/// Restores the system's own handling, for commands that do not become the daemon.
pub fn release() {
    sys::unblock_signals(&HANDLED_SIGNALS);
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// HUP.
    Reload,
    /// TERM or INT: drain; the second one: at once.
    Stop,
    /// QUIT: drain, however often it comes.
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

/// Reports a signal that has no meaning.
pub(super) fn ignore() {
    tracing::warn!(target: "daemon", "signal USR2 ignored: it has no meaning");
}

/// The signals that arrive from the start of the process on.
pub(super) struct Signals {
    receiver: mpsc::UnboundedReceiver<Signal>,
    /// Received, and put back until they can be acted on.
    kept: VecDeque<Signal>,
    /// A HUP waits: those that come until its reload begins are the same one.
    reload_waits: Arc<AtomicBool>,
    handle: Handle,
}

impl Signals {
    /// Takes the signals over from the system's own handling.
    pub(super) fn new() -> io::Result<Self> {
        let mut stream = Stream::new(HANDLED_SIGNALS)?;
        let handle = stream.handle();
        let (sender, receiver) = mpsc::unbounded_channel();
        let reload_waits = Arc::new(AtomicBool::new(false));
        let waits = Arc::clone(&reload_waits);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                // Of all threads only this one receives them.
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
            // The thread is gone: there will be none.
            None => std::future::pending().await,
        }
    }

    /// Gives back signals that [`next`](Self::next) gave, in their order; of several HUPs one remains.
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
