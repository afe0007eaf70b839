//! A listener as the data plane sees it: its configuration, its service, and what it keeps over
//! reloads.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use crate::{
    base::{log_limit::LogLimit, socket_key::SocketKey},
    config::model::{ListenerConfig, ListenerProtocol},
    net::tls::ServerTls,
    route::ServerNames,
    telemetry::metrics::{ListenerSlot, PerThread},
};

/// A listener of one generation.
#[derive(Debug)]
pub struct Listener {
    /// From the file.
    pub config: ListenerConfig,
    /// Kept over reloads.
    pub state: Arc<ListenerState>,
    /// The sockets that it listens on.
    pub sockets: Vec<SocketKey>,
    /// From `tls`; kept over reloads that change nothing of it, with the keys of its tickets.
    pub tls: Option<Arc<ServerTls>>,
    /// Handling of its connections.
    pub service: ListenerService,
}

/// Handling of a listener's connections: the extension point for another protocol.
///
/// It is worked out once per generation. `proxy/accept.rs` starts connections by it, in the one
/// `match` that tells protocols apart; everything else asks for the properties below.
#[derive(Debug)]
pub enum ListenerService {
    /// HTTP/1 and HTTP/2.
    Http,
    /// Bytes, relayed to the listener's pool.
    Tcp,
    /// TLS that is passed on as it is, to a pool by the server name in its ClientHello.
    SniPassthrough(ServerNames),
}

/// Part of a listener that is kept over reloads, by the listener's name.
#[derive(Debug, Default)]
pub struct ListenerState {
    /// Its counters.
    pub metrics: PerThread<ListenerSlot>,
    /// Open connections, for `limits.connections`.
    pub active: AtomicUsize,
    /// Open connections by client, for `limits.connections_per_client`; entries at 0 are removed.
    pub clients: Mutex<HashMap<IpAddr, usize>>,
    /// Limits how often clients' certificates that are not trusted are logged.
    pub certificate_log: LogLimit,
}

impl Listener {
    /// A listener of a new generation. `previous` is the listener of that name in the generation
    /// before, `departed` the state of one that left earlier and still has connections.
    pub(super) fn new(
        config: &ListenerConfig,
        previous: Option<&Self>,
        departed: Option<Arc<ListenerState>>,
    ) -> Self {
        Self {
            config: config.clone(),
            state: previous
                .map(|previous| Arc::clone(&previous.state))
                .or(departed)
                .unwrap_or_default(),
            sockets: config.sockets().collect(),
            tls: server_tls(config, previous),
            service: ListenerService::new(config),
        }
    }

    /// True if the TLS handshakes of its clients are read here, be it only their first message.
    pub fn reads_client_hellos(&self) -> bool {
        match self.service {
            ListenerService::Http | ListenerService::Tcp => self.tls.is_some(),
            ListenerService::SniPassthrough(_) => true,
        }
    }
}

impl ListenerService {
    fn new(config: &ListenerConfig) -> Self {
        match config.protocol {
            ListenerProtocol::Http => Self::Http,
            ListenerProtocol::Tcp => {
                ServerNames::new(&config.sni).map_or(Self::Tcp, Self::SniPassthrough)
            }
        }
    }

    /// True if connections carry requests, which are refused one by one with a response. The
    /// connections of other services are refused as a whole, by a reset.
    pub fn has_requests(&self) -> bool {
        match self {
            Self::Http => true,
            Self::Tcp | Self::SniPassthrough(_) => false,
        }
    }
}

/// The TLS of a listener. One that is unchanged is kept: clients come back with tickets that only
/// its keys can read.
fn server_tls(config: &ListenerConfig, previous: Option<&Listener>) -> Option<Arc<ServerTls>> {
    let tls = config.tls.as_ref()?;
    let same = previous.filter(|previous| previous.config.tls.as_ref() == Some(tls));
    let kept = same.and_then(|previous| previous.tls.clone());
    Some(kept.unwrap_or_else(|| Arc::new(ServerTls::new(tls))))
}
