//! State of the control thread: what a reload, a drain and the loop in `serve.rs` work on.

use std::{net::SocketAddr, path::PathBuf, rc::Rc, sync::Arc};

use super::{
    files::FileBudget,
    override_file::OverrideFile,
    signals::Signals,
    sockets::ListeningSockets,
    sticky_key::StickyKeys,
    systemd::ServiceManager,
    worker::{WorkerFaults, WorkerThreads},
};
use crate::{
    base::{address::BindAddress, paths::default_admin_socket, socket_key::SocketKey},
    config::model::{AdminConfig, Config},
    snapshot::Daemon,
    telemetry::sink::LogSinks,
};

/// State of the control thread.
pub(super) struct ControlThread {
    /// The configuration file.
    pub file: PathBuf,
    /// The open-file limit.
    pub files: FileBudget,
    pub daemon: Arc<Daemon>,
    pub sinks: LogSinks,
    pub sticky_keys: StickyKeys,
    pub sockets: ListeningSockets,
    pub workers: WorkerThreads,
    pub faults: WorkerFaults,
    pub started: StartSettings,
    /// Keeps the operator's overrides over a restart.
    pub overrides: OverrideFile,
    pub signals: Signals,
    pub manager: Rc<ServiceManager>,
}

/// Settings that take effect only at the start: those in force.
pub(super) struct StartSettings {
    pub admin: AdminConfig,
    pub metrics: Option<SocketAddr>,
}

impl StartSettings {
    /// The settings that `config` gives to the next start.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            admin: config.admin.clone(),
            metrics: config.metrics.bind,
        }
    }

    /// The socket of the admin API.
    pub(super) fn admin_socket(&self) -> SocketKey {
        SocketKey::tcp(self.admin.address(&default_admin_socket()))
    }

    /// The socket of the metrics page.
    pub(super) fn metrics_socket(&self) -> Option<SocketKey> {
        self.metrics
            .map(|address| SocketKey::tcp(BindAddress::Ip(address)))
    }
}
