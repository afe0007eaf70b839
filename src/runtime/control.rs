//! The control thread: signals, reloads, checks, admin and metrics, until a signal asks for the end.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{
    net::TcpListener,
    select,
    sync::{mpsc, oneshot},
    task::spawn_local,
};

use super::{
    FLUSH_TIMEOUT, drain,
    files::FileBudget,
    memory, reload,
    signals::{Signal, Signals, ignore},
    sockets::ListeningSockets,
    systemd::{self, ServiceManager},
    worker::{WorkerCommand, WorkerFaults, WorkerThreads},
};
use crate::{
    admin::{self, AdminListener, ReloadOutcome, serve_admin, serve_metrics},
    base::{address::BindAddress, rng::Random},
    config::model,
    health::HealthChecker,
    net::listen::BindError,
    snapshot::Daemon,
    telemetry::sink::LogSinks,
};

/// Reloads that may wait; more than one waiting collapse into one run anyway.
const MAX_WAITING_RELOADS: usize = 64;

/// What the control thread owns.
pub(super) struct ControlThread {
    /// The configuration file.
    pub file: PathBuf,
    /// The open-file limit.
    pub files: FileBudget,
    pub daemon: Arc<Daemon>,
    pub sinks: LogSinks,
    pub sockets: ListeningSockets,
    pub workers: WorkerThreads,
    pub faults: WorkerFaults,
    pub started: StartSettings,
    pub signals: Signals,
    pub manager: Rc<ServiceManager>,
}

/// What takes effect only at the start.
pub(super) struct StartSettings {
    pub admin: model::AdminConfig,
    pub metrics: Option<SocketAddr>,
}

/// Binds the admin API; the directory of the default socket is made if it is missing.
pub(super) fn bind_admin(
    config: &model::AdminConfig,
    default: &Path,
) -> std::io::Result<AdminListener> {
    if config.bind.is_none()
        && let Some(directory) = default.parent()
    {
        make_private(directory).map_err(|error| {
            let text = format!("cannot make {}: {error}", directory.display());
            std::io::Error::new(error.kind(), text)
        })?;
    }
    AdminListener::bind(config, default)
}

/// Makes `directory` for us alone, or checks that it is: in `/tmp` somebody else could have made it, or put a socket into it.
fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

    const GROUP_WRITES: u32 = 0o020;
    const OTHERS_WRITE: u32 = 0o002;
    const STICKY_BIT: u32 = 0o1000;

    let refused = |why: &str| {
        Err(std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            why,
        ))
    };
    let parent = directory.parent().and_then(|parent| parent.metadata().ok());
    let parent = parent.map_or(0, |parent| parent.mode());
    let is_shared = parent & OTHERS_WRITE != 0;
    if is_shared && parent & STICKY_BIT == 0 {
        return refused("everybody may replace it: its parent needs the sticky bit");
    }
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(directory)?;
            if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
                return refused("it belongs to another user");
            }
            let by_others = if is_shared {
                GROUP_WRITES | OTHERS_WRITE
            } else {
                OTHERS_WRITE
            };
            if found.mode() & by_others != 0 {
                return refused("others may write to it: `chmod 700` it");
            }
            Ok(())
        }
        made => made,
    }
}

/// Binds the scrape.
pub(super) async fn bind_metrics(
    bind: Option<SocketAddr>,
) -> Result<Option<TcpListener>, BindError> {
    let Some(address) = bind else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| BindError {
        address: BindAddress::Ip(address),
        source,
    })
}

impl ControlThread {
    /// Serves until a signal asks for the end, then drains and ends the workers.
    ///
    /// # Errors
    /// When a worker cannot go on: what it should have accepted would wait for ever, so the daemon drains and ends.
    pub(super) async fn run(
        mut self,
        admin: AdminListener,
        scrape: Option<TcpListener>,
        on_ready: Option<Box<dyn FnOnce() + Send>>,
    ) -> Result<(), String> {
        let mut follower = HealthChecker::new(Random::from_system());
        follower.apply(&self.daemon.snapshot.load().pools);
        let (handle, mut requests) = mpsc::channel(MAX_WAITING_RELOADS);
        drop(spawn_local(serve_admin(
            admin,
            Arc::clone(&self.daemon),
            handle,
        )));
        if let Some(scrape) = scrape {
            drop(spawn_local(serve_metrics(scrape, Arc::clone(&self.daemon))));
        }
        // To the very end: a drain may take longer than the watchdog waits.
        let watch = systemd::watch(Rc::clone(&self.manager), Arc::clone(&self.daemon));
        drop(spawn_local(watch));
        drop(spawn_local(memory::watch(Arc::clone(&self.daemon))));
        self.daemon.ready.store(true, Relaxed);
        let snapshot = self.daemon.snapshot.load_full();
        tracing::info!(
            target: "daemon", version = env!("CARGO_PKG_VERSION"), workers = self.daemon.workers.len(),
            listeners = snapshot.listeners.len(), pools = snapshot.pools.len(), "serving"
        );
        drop(snapshot);
        self.manager.ready("serving generation 1");
        if let Some(on_ready) = on_ready {
            on_ready();
        }
        let served = self.serve(&mut follower, &mut requests).await;
        if let Err(error) = &served {
            tracing::error!(target: "daemon", %error, "a worker cannot go on: the daemon ends");
        }
        // Whoever asks for a reload from now on is told that the daemon is leaving.
        drop(requests);
        drain::run(&mut self).await;
        let Self { workers, sinks, .. } = self;
        workers.broadcast(|_| Some(WorkerCommand::Stop));
        workers.join();
        tracing::info!(target: "daemon", "ended");
        sinks.flush_all(FLUSH_TIMEOUT);
        served
    }

    async fn serve(
        &mut self,
        follower: &mut HealthChecker,
        requests: &mut mpsc::Receiver<admin::ControlRequest>,
    ) -> Result<(), String> {
        loop {
            let mut waiting = Vec::new();
            select! {
                signal = self.signals.next() => match signal {
                    Signal::Reload => {}
                    Signal::Stop | Signal::Drain => return Ok(()),
                    Signal::ReopenLogs => {
                        self.sinks.reopen_all();
                        continue;
                    }
                    Signal::Unused => {
                        ignore();
                        continue;
                    }
                },
                Some(admin::ControlRequest::Reload(answer)) = requests.recv() => waiting.push(answer),
                Some(fault) = self.faults.recv() => return Err(fault),
            }
            // Everybody who asked before the file is read gets the answer of this one run.
            while let Ok(admin::ControlRequest::Reload(answer)) = requests.try_recv() {
                waiting.push(answer);
            }
            // A signal to end meanwhile is the next one; the client of the reload is told that the daemon is leaving.
            if let Some(outcome) = reload::run(self, follower).await {
                answer(waiting, &outcome);
            }
        }
    }
}

fn answer(waiting: Vec<oneshot::Sender<ReloadOutcome>>, outcome: &ReloadOutcome) {
    for sender in waiting {
        // Whoever asked may have left.
        let _ = sender.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use super::*;

    #[test]
    fn a_runtime_directory_that_others_may_write_or_replace_is_refused() {
        let top = std::env::temp_dir().join(format!("balancer-private-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        let directory = top.join("run");
        let check = |parent: u32, own: u32| {
            let mode = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            };
            mode(&top, parent);
            mode(&directory, own);
            make_private(&directory).map_err(|error| error.to_string())
        };
        make_private(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        for own in [0o700, 0o755] {
            assert_eq!(check(0o1777, own), Ok(()), "{own:o}");
        }
        for own in [0o770, 0o702, 0o777] {
            let refused = check(0o1777, own).unwrap_err();
            assert!(refused.contains("others may write"), "{own:o}: {refused}");
        }
        assert!(check(0o777, 0o700).unwrap_err().contains("sticky"));
        assert_eq!(check(0o755, 0o770), Ok(()), "a group that was chosen");
        assert!(check(0o755, 0o777).is_err());
        fs::remove_dir_all(&top).unwrap();
    }
}
