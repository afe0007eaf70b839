//! Signals, as messages for the control thread.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1},
    iterator::{Handle, Signals as Stream},
};
use tokio::sync::mpsc;

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
}

/// The signals that arrive from now on.
pub(super) struct Signals {
    receiver: mpsc::UnboundedReceiver<Signal>,
    /// A HUP waits: those that come until its reload begins are the same one.
    reload_waits: Arc<AtomicBool>,
    handle: Handle,
}

impl Signals {
    /// Takes the signals over from the system's own handling.
    pub(super) fn new() -> io::Result<Self> {
        let mut stream = Stream::new([SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1])?;
        let handle = stream.handle();
        let (sender, receiver) = mpsc::unbounded_channel();
        let reload_waits = Arc::new(AtomicBool::new(false));
        let waits = Arc::clone(&reload_waits);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in stream.forever() {
                    let signal = match signal {
                        SIGHUP if waits.swap(true, SeqCst) => continue,
                        SIGHUP => Signal::Reload,
                        SIGTERM | SIGINT => Signal::Stop,
                        SIGQUIT => Signal::Drain,
                        SIGUSR1 => Signal::ReopenLogs,
                        // A write to a closed pipe is an error where it is made.
                        _ => continue,
                    };
                    if sender.send(signal).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            receiver,
            reload_waits,
            handle,
        })
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Signal {
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
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
    }
}
