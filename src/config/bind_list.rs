//! The addresses that a file listens on, with their places and owners: to find clashes, and to
//! report the place of one that the system refuses.

use std::net::SocketAddr;

use super::{reader::NodeRef, yaml::SourcePlace};
use crate::base::{address::BindAddress, socket_key::SocketKey};

/// Addresses to listen on with their owners, to find clashes.
#[derive(Default)]
pub(super) struct BindList(Vec<BoundAddress>);

/// One address to listen on.
pub(super) struct BoundAddress {
    pub(super) socket: SocketKey,
    pub(super) owner: String,
    pub(super) path: String,
    pub(super) place: SourcePlace,
    /// False for metrics and admin, which do not share their ports.
    pub(super) shares: bool,
}

impl BindList {
    /// Adds the address at `at`.
    pub(super) fn add(&mut self, at: NodeRef<'_>, socket: SocketKey, owner: String, shares: bool) {
        self.0.push(BoundAddress {
            socket,
            owner,
            path: at.path(),
            place: at.node.place,
            shares,
        });
    }

    /// Adds the address of the metrics where the file does not name one.
    pub(super) fn add_default_metrics(&mut self, address: SocketAddr) {
        self.0.push(BoundAddress {
            socket: SocketKey::tcp(BindAddress::Ip(address)),
            owner: "`metrics.bind` by default".to_owned(),
            path: String::new(),
            place: SourcePlace::default(),
            shares: false,
        });
    }

    /// In the order in which they were read.
    pub(super) fn all(&self) -> &[BoundAddress] {
        &self.0
    }
}
