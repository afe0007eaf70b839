//! `balancer demo`: the shipped configuration, embedded backends at its addresses, and the real daemon in front.
//!
//! The backends live on a thread of their own; the daemon does not know that they are in its process.

mod backend;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::{oneshot, watch};

use self::backend::{BackendMode, DOWN_DURATION, DemoBackend, DemoBackends};
use super::output::{print, print_error};
use crate::{
    base::{
        address::{BackendAddress, BindAddress},
        paths::default_admin_socket,
    },
    config::model::{Config, ListenerProtocol},
    runtime::{self, RunOptions},
};

/// The file that ships with balancer: used where there is none.
const SHIPPED_CONFIG: &str = include_str!("../../../balancer.yaml");

/// More embedded backends than this are a mistake in the file.
const MAX_BACKENDS: usize = 32;

/// Runs the demo until a signal ends it.
pub(super) fn run(config: Option<&Path>) -> ExitCode {
    let file = match DemoFile::find(config) {
        Ok(file) => file,
        Err(error) => {
            print_error(&format!(
                "error: the shipped configuration cannot be written down: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let loaded = match super::load(&file.path) {
        Ok(loaded) => loaded,
        Err(rendered) => {
            print_error(&rendered);
            return ExitCode::from(super::EXIT_BAD_CONFIG);
        }
    };
    match Demo::open(&loaded) {
        Ok(demo) => {
            let text = welcome_text(&loaded, &file.path, &demo.backends);
            let options = RunOptions {
                on_ready: Some(Box::new(move || print(&text))),
            };
            let code = runtime::run(&file.path, options);
            demo.close();
            code
        }
        Err(error) => {
            print_error(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The configuration of the demo; a temporary copy is removed with it.
struct DemoFile {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl DemoFile {
    /// The file that is named, else `./balancer.yaml`, else the shipped one in a fresh private directory.
    fn find(named: Option<&Path>) -> io::Result<Self> {
        let here = Path::new("balancer.yaml");
        if let Some(path) = named.or_else(|| here.exists().then_some(here)) {
            return Ok(Self {
                path: path.to_owned(),
                temporary: None,
            });
        }
        let directory = std::env::temp_dir().join(format!("balancer-demo-{}", std::process::id()));
        // Fails where somebody else was first, so nobody can plant a file for us.
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let path = directory.join("balancer.yaml");
        let file = Self {
            path,
            temporary: Some(directory),
        };
        fs::write(&file.path, SHIPPED_CONFIG)?;
        Ok(file)
    }
}

impl Drop for DemoFile {
    fn drop(&mut self) {
        if let Some(directory) = &self.temporary {
            // Best effort: a left-over directory in the temporary directory harms nobody.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Why the demo cannot begin.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(
        "the demo needs backends at addresses of this machine such as 127.0.0.1:9001, but pool `{pool}` has `{address}`"
    )]
    NotHere { pool: String, address: String },
    #[error("the demo starts at most {MAX_BACKENDS} backends, and the file has {0}")]
    TooMany(usize),
    #[error(
        "{name} cannot listen on {address}: {error}\n  is another demo, or something else, using that port?"
    )]
    Taken {
        name: String,
        address: SocketAddr,
        error: io::Error,
    },
    #[error("the backends' thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The running backends.
struct Demo {
    backends: DemoBackends,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Demo {
    /// Starts a backend at each address of the pools; all listen when this returns.
    fn open(config: &Config) -> Result<Self, DemoError> {
        let backends: DemoBackends = addresses(config)?
            .into_iter()
            .enumerate()
            .map(|(index, address)| DemoBackend {
                name: format!("backend-{}", index + 1),
                address,
                mode: watch::Sender::new(BackendMode::Ok),
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DemoError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (report, started) = mpsc::channel();
        let served = Arc::clone(&backends);
        let play = move || {
            runtime.block_on(async {
                let opened = start(&served);
                let begun = opened.is_ok();
                if report.send(opened).is_ok() && begun {
                    // An error means that the other side is gone: the end as well.
                    let _ = stopped.await;
                }
            });
        };
        let thread = thread::Builder::new()
            .name("demo-backends".to_owned())
            .spawn(play)
            .map_err(DemoError::Thread)?;
        let demo = Self {
            backends,
            stop,
            thread,
        };
        match started.recv() {
            Ok(Ok(())) => Ok(demo),
            Ok(Err(error)) => {
                demo.close();
                Err(error)
            }
            Err(_) => Err(DemoError::Thread(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Ends all backends with their connections.
    fn close(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Opens every listener before the first backend serves, so that a taken port starts nothing.
fn start(backends: &DemoBackends) -> Result<(), DemoError> {
    let mut open = Vec::with_capacity(backends.len());
    for backend in backends.iter() {
        open.push(
            backend::listen(backend.address).map_err(|error| DemoError::Taken {
                name: backend.name.clone(),
                address: backend.address,
                error,
            })?,
        );
    }
    for (index, listener) in open.into_iter().enumerate() {
        drop(tokio::spawn(backend::serve(
            Arc::clone(backends),
            index,
            listener,
        )));
    }
    Ok(())
}

/// The addresses of all pools' backends, each once, in the order of the file.
fn addresses(config: &Config) -> Result<Vec<SocketAddr>, DemoError> {
    let mut found = Vec::new();
    for pool in &config.pools {
        for backend in &pool.backends {
            match &backend.address {
                BackendAddress::Ip(address) if address.ip().is_loopback() => {
                    if !found.contains(address) {
                        found.push(*address);
                    }
                }
                other => {
                    return Err(DemoError::NotHere {
                        pool: pool.name.to_string(),
                        address: other.to_string(),
                    });
                }
            }
        }
    }
    if found.len() > MAX_BACKENDS {
        return Err(DemoError::TooMany(found.len()));
    }
    Ok(found)
}

/// What a client on this machine types to reach a bind: `[::]` and `0.0.0.0` are everywhere, so also here.
fn reachable(bind: &BindAddress) -> Option<SocketAddr> {
    match bind {
        BindAddress::Ip(address) if address.ip().is_unspecified() => Some(SocketAddr::new(
            IpAddr::from([127, 0, 0, 1]),
            address.port(),
        )),
        BindAddress::Ip(address) => Some(*address),
        BindAddress::Unix(_) => None,
    }
}

/// What `status` and `reload` in another terminal need to find the admin API.
fn admin_option(config: &Config, file: &Path) -> String {
    match &config.admin.bind {
        Some(BindAddress::Unix(path)) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!(" --admin unix:{}", path.display())
        }
        Some(BindAddress::Ip(_)) => {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            format!(" -c {}", file.display())
        }
        // Only this process knows of it.
        None if std::env::var_os("RUNTIME_DIRECTORY").is_some() => {
            format!(" --admin unix:{}", default_admin_socket().display())
        }
        None => String::new(),
    }
}

/// The text for the terminal: what runs, and what to try.
fn welcome_text(config: &Config, file: &Path, backends: &DemoBackends) -> String {
    use std::fmt::Write as _;

    let listener = |protocol| {
        config
            .listeners
            .iter()
            .filter(|listener| listener.protocol == protocol)
            .find_map(|listener| listener.binds.iter().find_map(reachable))
    };
    let mut text = format!(
        "\nbalancer is up, with {} and {} demo backends in this process.\n",
        file.display(),
        backends.len()
    );
    let mut add = |what: &str, how: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {what:<54} {how}");
    };
    for backend in backends.iter() {
        add(&backend.name, &format!("http://{}", backend.address));
    }
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "balancer".to_owned());
    if let Some(http) = listener(ListenerProtocol::Http) {
        add(
            "the backends take turns, a few times:",
            &format!("curl http://{http}/"),
        );
        add(
            "what a backend is sent:",
            &format!("curl http://{http}/headers"),
        );
    }
    if let Some(tcp) = listener(ListenerProtocol::Tcp) {
        add(
            "the same servers over the tcp listener:",
            &format!("curl http://{tcp}/"),
        );
    }
    if let Some(first) = backends.first() {
        let at = first.address;
        add(
            "make one fail (or hang, garbage, reset, down):",
            &format!("curl -X POST http://{at}/fail"),
        );
        add("well again:", &format!("curl -X POST http://{at}/ok"));
        if let Some(second) = backends.get(1) {
            let seconds = DOWN_DURATION.as_secs();
            let what = format!(
                "{} back from down (by itself after {seconds} s):",
                first.name
            );
            add(
                &what,
                &format!("curl -X POST http://{}/ok/{}", second.address, first.name),
            );
        }
    }
    let at = admin_option(config, file);
    add("who is up, and why not:", &format!("{program} status{at}"));
    if let Some(metrics) = config.metrics.bind {
        let metrics = reachable(&BindAddress::Ip(metrics)).unwrap_or(metrics);
        add("the metrics:", &format!("curl http://{metrics}/metrics"));
    }
    let reload = format!(
        "{program} reload{at}   (or kill -HUP {})",
        std::process::id()
    );
    add(
        "edit the file, then reload without losing anything:",
        &reload,
    );
    text.push_str("Ctrl-C ends everything.\n");
    text
}
