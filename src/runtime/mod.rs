//! The process: from the configuration file to the last flushed log line.
//!
//! [`run`] reads top to bottom: load → bind → start workers → serve on the control thread → drain.
//! The control thread (the caller's) runs signals, reload, checks, admin and metrics; it never
//! carries traffic. Read next: `serve.rs`, `reload.rs`, `worker.rs`, `drain.rs`.

mod admin_sockets;
mod control;
mod drain;
mod files;
mod load;
mod membership;
mod memory;
mod override_file;
mod overrides;
mod reload;
mod serve;
mod signals;
mod sockets;
mod sticky_key;
mod systemd;
mod worker;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions, LocalRuntime},
};

pub use self::signals::{hold as hold_signals, release as release_signals};
use self::{
    control::{ControlThread, StartSettings},
    files::FileBudget,
    override_file::OverrideFile,
    signals::Signals,
    sockets::{ListeningSockets, PreparedSockets, SocketError},
    sticky_key::StickyKeys,
    systemd::ServiceManager,
    worker::WorkerThreads,
};
use crate::{
    admin::AdminListener,
    base::{clock, paths::default_admin_socket, rng::Random, socket_key::SocketKey},
    config::{BindPlaces, LoadedConfig, Problems, model::Config},
    discovery,
    net::limits::raise_open_file_limit,
    snapshot::{Daemon, Snapshot},
    telemetry::{access_log::AccessLog, log, metrics, sink::LogSinks},
};

/// Exit code for a configuration that is broken at start: `EX_CONFIG` of sysexits(3), so that a
/// supervisor can tell it from a failure that a restart may mend.
const EX_CONFIG: u8 = 78;

/// Differences between `run` and `demo`.
#[derive(Default)]
pub struct RunOptions {
    /// Called once the daemon serves.
    pub on_ready: Option<Box<dyn FnOnce() + Send>>,
    /// Directory of state that outlives the process; `None` keeps none.
    pub state_directory: Option<PathBuf>,
    /// Nothing is to be kept: a missing state directory is no mistake.
    pub is_temporary: bool,
}

/// Runs the daemon until it has drained. Reports on standard error why it could not start.
///
/// The exit code is 0 after a drain, 78 if the configuration is broken, 1 if anything else prevents
/// the start, such as a port that is in use.
pub fn run(file: &Path, options: RunOptions) -> ExitCode {
    let failed = |error: String| {
        let error = error.strip_prefix("error: ").unwrap_or(&error);
        print_error(&format!("error: {error}"));
        ExitCode::FAILURE
    };
    let (runtime, mut signals) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => return failed(error),
    };
    let sinks = LogSinks::default();
    let sticky_keys = if options.is_temporary {
        StickyKeys::temporary()
    } else {
        StickyKeys::new(options.state_directory.as_deref())
    };
    let loading = load::load(file, &sticky_keys, &mut signals, &sinks);
    let loaded = match runtime.block_on(loading) {
        Some(Ok(loaded)) => loaded,
        Some(Err(problems)) => {
            print_error(&problems.render());
            return ExitCode::from(EX_CONFIG);
        }
        // A signal asked for the end before there were connections to drain.
        None => return ExitCode::SUCCESS,
    };
    let served = start(file, loaded, sinks, sticky_keys, &runtime, signals, options);
    // Threads that hang, in a DNS lookup or on a file system, must not delay the end.
    runtime.shutdown_background();
    served.map_or_else(failed, |()| ExitCode::SUCCESS)
}

/// Starts the control thread's runtime. Signals come first: from here on none kills the process.
fn prepare() -> Result<(LocalRuntime, Signals), String> {
    let signals = Signals::new().map_err(cannot("cannot install signal handlers"))?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(cannot("cannot start the control thread"))?;
    Ok((runtime, signals))
}

/// Puts what failed in front of the system's error.
fn cannot(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Prints for the person at the terminal, before there is a log.
fn print_error(text: &str) {
    // Fails if standard error is closed: there is no other place for it.
    let _ = writeln!(io::stderr(), "{}", text.trim_end());
}

/// Binds and starts everything by the configuration that was loaded, and serves.
fn start(
    file: &Path,
    loaded: LoadedConfig,
    sinks: LogSinks,
    sticky_keys: StickyKeys,
    runtime: &LocalRuntime,
    signals: Signals,
    options: RunOptions,
) -> Result<(), String> {
    let LoadedConfig {
        config,
        warnings,
        binds,
    } = loaded;
    log::init(config.log.level, config.log.format).map_err(cannot("cannot start the log"))?;
    report_panics();
    for warning in &warnings {
        tracing::warn!(target: "config", "{warning}");
    }
    let limit = raise_open_file_limit();
    let workers = config.workers.unwrap_or_else(usable_cores);
    metrics::set_threads(workers);
    let config = Arc::new(config);
    let sink = sinks.open(&config.access_log.output);
    let sink = sink.map_err(cannot("cannot open the access log"))?;
    let access_log = AccessLog::new(&config.access_log, sink);
    let snapshot = Snapshot::build_with(
        Arc::clone(&config),
        None,
        access_log,
        &discovery::first_members,
        clock::now(),
    );
    // Balancers that are restarted together must not all send their first requests to one backend.
    let mut random = Random::from_system();
    for pool in &snapshot.pools {
        pool.start_at(random.below(u16::MAX.into()));
    }
    let overrides = OverrideFile::new(options.state_directory.as_deref());
    let table = runtime.block_on(overrides.load());
    // Before the first pick: a backend in maintenance must not get the first request.
    snapshot.restore(&table);
    overrides::log_at_start(&table, &snapshot);
    let daemon = Arc::new(Daemon::new(snapshot, workers, 0));
    *daemon.overrides() = table;
    let mut sockets = ListeningSockets::default();
    // Everything is bound before the first worker starts: a port in use must stop the start while
    // it still costs nothing.
    let (prepared, admin, scrape) = runtime
        .block_on(listen(&sockets, &config, workers, &binds))
        .map_err(|problems| problems.render())?;
    let (worker_threads, faults) = WorkerThreads::start(&daemon)?;
    let files = FileBudget::measure(limit, workers, &config);
    if let Some(warning) = files.limit_connections(&config, &daemon) {
        tracing::warn!(target: "daemon", "{warning}");
    }
    sockets.commit(prepared, &worker_threads);
    let control = ControlThread {
        file: file.to_path_buf(),
        files,
        daemon: Arc::clone(&daemon),
        sinks,
        sticky_keys,
        sockets,
        workers: worker_threads,
        faults,
        started: StartSettings::new(&config),
        overrides,
        signals,
        manager: ServiceManager::from_environment(),
    };
    runtime.block_on(serve::run(control, admin, scrape, options.on_ready))
}

/// Binds the sockets of listeners, admin API and metrics page.
async fn listen(
    sockets: &ListeningSockets,
    config: &Config,
    workers: usize,
    binds: &BindPlaces,
) -> Result<(PreparedSockets, AdminListener, Option<TcpListener>), Problems> {
    let problem =
        |SocketError { key, error }| binds.problem(&key, &error.to_string(), error.source.kind());
    let prepared = sockets.prepare(config, workers).map_err(problem)?;
    let default = default_admin_socket();
    let admin = admin_sockets::bind_admin(&config.admin, &default).map_err(|error| {
        let key = SocketKey::tcp(config.admin.address(&default));
        binds.problem(&key, &error.to_string(), error.kind())
    })?;
    let scrape = admin_sockets::bind_metrics(config.metrics.bind).await;
    Ok((
        prepared,
        admin,
        scrape.map_err(|error| problem(SocketError::tcp(error)))?,
    ))
}

fn usable_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Logs panics: each is a bug that ended one task, and must not go unnoticed.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(target: "daemon", "panic: {panic}");
    }));
}
