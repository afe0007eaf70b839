//! `balancer demo`: the shipped configuration, embedded backends at its addresses, and the real
//! daemon.
//!
//! The backends run on their own thread. The daemon is the real one: it does not know that its
//! backends are in the same process. Read next: `backend.rs`.

mod backend;
mod welcome;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::{oneshot, watch};

use self::{
    backend::{BackendMode, DemoBackend, DemoBackends},
    welcome::welcome_text,
};
use super::{
    config_file::load,
    exit_code::EXIT_BAD_CONFIG,
    output::{print, print_error},
};
use crate::{
    base::address::BackendAddress,
    config::model::Config,
    runtime::{self, RunOptions},
};

/// Configuration that ships with balancer, used if there is no file.
const SHIPPED_CONFIG: &str = include_str!("../../../balancer.yaml");

/// Maximum number of embedded backends. A file with more of them is not for a demo.
const MAX_BACKENDS: usize = 32;

/// Runs the demo until a signal stops it.
pub(super) fn run(config: Option<&Path>) -> ExitCode {
    let file = match DemoFile::find(config) {
        Ok(file) => file,
        Err(error) => {
            print_error(&format!(
                "error: cannot write the shipped configuration to a temporary file: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let loaded = match load(&file.path) {
        Ok(loaded) => loaded,
        Err(rendered) => {
            print_error(&rendered);
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    match Demo::open(&loaded) {
        Ok(demo) => {
            let text = welcome_text(&loaded, &file.path, &demo.backends);
            // Printed when the daemon is ready, so that the commands in the text work at once.
            let options = RunOptions {
                on_ready: Some(Box::new(move || print(&text))),
                // A demo must leave nothing for the next one, or for an installed balancer.
                state_directory: None,
                is_temporary: true,
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

/// Configuration file of the demo. A temporary copy is removed on drop.
struct DemoFile {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl DemoFile {
    /// Returns the named file, else `./balancer.yaml`, else a copy of the shipped one in a new
    /// private directory.
    fn find(named: Option<&Path>) -> io::Result<Self> {
        let here = Path::new("balancer.yaml");
        if let Some(path) = named.or_else(|| here.exists().then_some(here)) {
            return Ok(Self {
                path: path.to_owned(),
                temporary: None,
            });
        }
        // The process id makes the name unique among running demos.
        let directory = std::env::temp_dir().join(format!("balancer-demo-{}", std::process::id()));
        // Fails if the directory exists, so that another user cannot prepare a file in it.
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
            // If this fails, a small directory stays among the temporary files.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Failure to start the demo.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(
        "the demo needs backends at addresses of this machine such as 127.0.0.1:9001, but pool `{pool}` has `{address}`"
    )]
    NotHere { pool: String, address: String },
    #[error("the demo starts at most {MAX_BACKENDS} backends, but the file has {0}")]
    TooMany(usize),
    #[error(
        "{name} cannot listen on {address}: {error}\n  is another demo or another program using this port?"
    )]
    Taken {
        name: String,
        address: SocketAddr,
        #[source]
        error: io::Error,
    },
    #[error("cannot start the thread of the backends: {0}")]
    Thread(#[source] io::Error),
}

/// Running backends and their thread.
struct Demo {
    backends: DemoBackends,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Demo {
    /// Starts a backend at each address of the pools. All of them listen when this returns.
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
        // A separate thread, so that a backend that hangs does not stop the control thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DemoError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (report, started) = mpsc::channel();
        let served = Arc::clone(&backends);
        let run = move || {
            runtime.block_on(async {
                let opened = start(&served);
                let begun = opened.is_ok();
                if report.send(opened).is_ok() && begun {
                    // An error means that the sender was dropped, which stops the demo too.
                    let _ = stopped.await;
                }
            });
        };
        let thread = thread::Builder::new()
            .name("demo-backends".to_owned())
            .spawn(run)
            .map_err(DemoError::Thread)?;
        let demo = Self {
            backends,
            stop,
            thread,
        };
        // The thread reports whether all ports could be opened.
        match started.recv() {
            Ok(Ok(())) => Ok(demo),
            Ok(Err(error)) => {
                demo.close();
                Err(error)
            }
            Err(_) => Err(DemoError::Thread(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Stops all backends and closes their connections.
    fn close(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Opens all listeners before the first backend serves. If one port is in use, no backend starts.
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

/// Addresses of the backends of all pools: each once, in the order of the file.
fn addresses(config: &Config) -> Result<Vec<SocketAddr>, DemoError> {
    let mut found = Vec::new();
    for pool in &config.pools {
        for backend in &pool.backends {
            match &backend.address {
                // Only loopback: the demo must not open ports to the network.
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
