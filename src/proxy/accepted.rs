//! A connection between its accept and the start of its service.

use std::{net::IpAddr, rc::Rc, time::Duration};

use super::{http::ClientConnection, worker::Worker};
use crate::{
    base::socket_key::SocketKey,
    net::{proxy_protocol::ProxyHeader, stream::Stream},
};

/// An accepted connection.
pub(super) struct AcceptedConnection {
    pub(super) stream: Stream,
    /// The client's address, as far as it is known.
    pub(super) peer: Option<IpAddr>,
    /// The listening socket. The listener is looked up by it again at each step, as a reload may
    /// have replaced it.
    pub(super) socket: Rc<SocketKey>,
    /// The PROXY header that it began with.
    pub(super) proxy_header: Option<Box<ProxyHeader>>,
    /// Time left for the head of its first request.
    pub(super) header_timeout: Option<Duration>,
}

impl AcceptedConnection {
    /// The same, counted among the worker's client connections.
    pub(super) fn into_client(self, worker: &Worker) -> ClientConnection {
        let handle = worker.connections.enter(Rc::clone(&self.socket));
        let (socket, timeout) = (self.socket, self.header_timeout);
        let mut client = ClientConnection::new(self.stream, self.peer, socket, handle, timeout);
        client.proxy_header = self.proxy_header;
        client
    }
}
