//! Places of the addresses to listen on: only the system finds that one is in use or not allowed.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    bind_list::{BindList, BoundAddress},
    problem::{Problem, Problems, Severity},
    reader::TreeReader,
    yaml::SourcePlace,
};
use crate::base::{address::BindAddress, socket_key::SocketKey};

/// The places of all addresses to listen on.
#[derive(Debug, Clone)]
pub struct BindPlaces {
    file: PathBuf,
    binds: Vec<BindPlace>,
}

#[derive(Debug, Clone)]
struct BindPlace {
    socket: SocketKey,
    /// ``listener `web` ``.
    owner: String,
    /// The problem that it will be, without its texts.
    problem: Problem,
}

impl BindPlaces {
    pub(super) fn new(reader: &TreeReader<'_>, file: &Path, binds: &BindList) -> Self {
        let place = |bound: &BoundAddress| BindPlace {
            socket: bound.socket.clone(),
            owner: bound.owner.clone(),
            problem: reader.problem(Severity::Error, bound.place, bound.path.clone()),
        };
        Self {
            file: file.to_owned(),
            binds: binds.all().iter().map(place).collect(),
        }
    }

    /// The problem that nothing can listen on `socket`: it names the owner and the place in the
    /// file. `cause` says it in full, with the address.
    pub fn problem(&self, socket: &SocketKey, cause: &str, kind: io::ErrorKind) -> Problems {
        let known = self.binds.iter().find(|bind| bind.socket == *socket);
        let message = known.map(|bind| format!("{}: {cause}", bind.owner));
        let template = known.map(|bind| bind.problem.clone());
        let elsewhere = || Problem {
            severity: Severity::Error,
            file: self.file.clone(),
            place: SourcePlace::default(),
            path: String::new(),
            message: String::new(),
            hint: String::new(),
            line_text: String::new(),
        };
        Problems(vec![Problem {
            message: message.unwrap_or_else(|| cause.to_owned()),
            hint: hint(&socket.address, kind).to_owned(),
            ..template.unwrap_or_else(elsewhere)
        }])
    }
}

fn hint(address: &BindAddress, kind: io::ErrorKind) -> &'static str {
    match (kind, address) {
        (io::ErrorKind::AddrInUse, BindAddress::Ip(_)) => "choose another port, or free this one",
        (io::ErrorKind::AddrInUse, BindAddress::Unix(_)) => "choose another path, or free this one",
        (io::ErrorKind::AddrNotAvailable, _) => {
            "write an address of this machine, or `:PORT` for all of them"
        }
        (io::ErrorKind::PermissionDenied, BindAddress::Ip(_)) => {
            "choose a port above 1023, or give the daemon CAP_NET_BIND_SERVICE"
        }
        (io::ErrorKind::PermissionDenied, BindAddress::Unix(_)) => {
            "choose a directory that the daemon's user may write"
        }
        (io::ErrorKind::NotFound, BindAddress::Unix(_)) => "make the directory",
        _ => "choose another address",
    }
}
