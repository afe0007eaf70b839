//! A client as an exchange sees it: its side, its address, its timer.
//!
//! Waits for requests and writes responses of our own within their timeouts. Must not know what an
//! exchange is.

use std::{
    future::poll_fn,
    net::IpAddr,
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use super::{client_side::ClientSide, deadline::Deadline};
use crate::{
    base::{address::BindAddress, clock, socket_key::SocketKey},
    config::model::ListenerTimeoutsConfig,
    net::{
        activity::ActivityTracker,
        copy::RelaySide as _,
        proxy_protocol::{ConnectionEnds, ProxyHeader},
    },
    proxy::{connections::ConnectionHandle, timer::Timer},
    reason::Reason,
    snapshot::{Listener, Snapshot},
};

/// A client connection, or one stream of it.
#[derive(Debug)]
pub struct ClientConnection {
    /// The connection or the stream.
    pub side: ClientSide,
    /// Address of the other end; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// The address it was accepted on.
    pub bind: Rc<SocketKey>,
    /// Its entry among the worker's connections.
    pub entry: ConnectionHandle,
    /// PROXY header, on listeners that require one.
    pub proxy_header: Option<Box<ProxyHeader>>,
    pub(super) timer: Timer,
    /// Generation and index of its listener, as of the last request.
    pub(super) listener: Option<(u64, usize)>,
    /// Deadline for the whole head of the first request, until it was read.
    pub(super) first_request_deadline: Option<Instant>,
    /// Pipelined requests since the last read.
    pub(super) pipelined_requests: u32,
    /// No request received yet.
    pub(super) is_unused: bool,
}

impl ClientConnection {
    /// A connection that was just accepted. `header` is the time for its first request.
    pub fn new(
        side: impl Into<ClientSide>,
        peer: Option<IpAddr>,
        bind: Rc<SocketKey>,
        entry: ConnectionHandle,
        header: Option<Duration>,
    ) -> Self {
        let first_request_deadline = header.map(|header| clock::now() + header);
        Self {
            side: side.into(),
            peer,
            bind,
            entry,
            proxy_header: None,
            timer: Timer::default(),
            listener: None,
            first_request_deadline,
            pipelined_requests: 0,
            is_unused: true,
        }
    }

    /// Both ends of the client's own connection; `None` if it has no addresses.
    pub(super) fn ends(&self) -> Option<ConnectionEnds> {
        match &self.proxy_header {
            None => self.side.ends(),
            Some(header) => header.ends(|| self.side.ends()),
        }
    }

    /// Local port that the client connected to; `None` if it has no address.
    pub(super) fn local_port(&self) -> Option<u16> {
        match (&self.proxy_header, &self.bind.address) {
            (None, BindAddress::Unix(_)) => None,
            (None, BindAddress::Ip(bind)) if bind.port() > 0 => Some(bind.port()),
            _ => self.ends().map(|ends| ends.destination.port()),
        }
    }

    /// The listener that serves this connection in `snapshot`, with its index. The address is
    /// looked up once per generation.
    pub(super) fn listener_in<'s>(
        &mut self,
        snapshot: &'s Snapshot,
    ) -> Option<(usize, &'s Listener)> {
        if self
            .listener
            .is_none_or(|(generation, _)| generation != snapshot.generation)
        {
            let index = snapshot.listener_index(&self.bind);
            self.listener = index.map(|index| (snapshot.generation, index));
        }
        let (_, index) = self.listener?;
        Some((index, snapshot.listeners.get(index)?))
    }

    /// Ends our direction of an HTTP/1 connection, so that the last bytes go out before a reset can
    /// drop them, should the client have sent more. A stream has ended with its response.
    pub(super) fn finish(&self) {
        if let ClientSide::H1(stream) = &self.side {
            // Fails only if the connection is gone already.
            let _ = stream.shutdown_write();
        }
    }

    /// Waits for the first byte of a request; false if the connection must be closed instead.
    /// `keepalive` is the deadline for requests but the first.
    pub(super) async fn wait_for_request(&mut self, keepalive: Option<Instant>) -> bool {
        let deadline = self.first_request_deadline.or(keepalive);
        let Self {
            side, entry, timer, ..
        } = self;
        let readable = poll_fn(|cx| {
            let told_to_close = entry.wait(cx);
            if side.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            // A request may be there although the driver has not reported it yet, as on a
            // connection that was just accepted. It is served: its event is on the way.
            let is_over = told_to_close || timer.poll(cx, deadline).is_ready();
            if is_over && side.has_no_pending_input() {
                return Poll::Ready(false);
            }
            Poll::Pending
        })
        .await;
        entry.busy();
        readable
    }

    /// Waits until a head can be sent; gives up a client that reads nothing of what was sent before
    /// for `timeouts.body_idle`, or until `total`.
    pub(super) async fn head_ready(
        &mut self,
        timeouts: &ListenerTimeoutsConfig,
        total: Option<Deadline>,
    ) -> Result<(), Reason> {
        let Self { side, timer, .. } = self;
        let mut activity: Option<ActivityTracker> = None;
        poll_fn(|cx| match side.poll_head_ready(cx) {
            Poll::Ready(ready) => Poll::Ready(ready.map_err(|_| Reason::ClientDisconnected)),
            Poll::Pending => {
                let activity = activity.get_or_insert_with(|| ActivityTracker::new(clock::now()));
                let unacked = || [side.unacked(), None];
                let (idle, end) = (timeouts.body_idle, total.map(|total| total.at));
                let passed = ready!(timer.poll_idle(cx, activity, idle, end, unacked));
                let reason = Deadline::reason_of(passed, total);
                Poll::Ready(Err(reason.unwrap_or(Reason::ClientWriteTimeout)))
            }
        })
        .await
    }

    /// Writes all of `bytes`, which end the response if `ends`; gives up a client that takes none
    /// of them for `timeouts.body_idle`.
    pub(super) async fn write_all(
        &mut self,
        bytes: &[u8],
        ends: bool,
        timeouts: &ListenerTimeoutsConfig,
    ) -> Result<(), Reason> {
        let Self { side, timer, .. } = self;
        let (mut sent, mut sent_before) = (0, None);
        let mut activity: Option<ActivityTracker> = None;
        poll_fn(|cx| {
            while let Some(unsent @ [_, ..]) = bytes.get(sent..) {
                match side.poll_write(cx, unsent, ends) {
                    Poll::Ready(Ok(count @ 1..)) => sent += count,
                    Poll::Ready(_) => return Poll::Ready(Err(Reason::ClientDisconnected)),
                    Poll::Pending => {
                        if sent_before.replace(sent) != Some(sent) {
                            activity = None;
                        }
                        let activity =
                            activity.get_or_insert_with(|| ActivityTracker::new(clock::now()));
                        let unacked = || [side.unacked(), None];
                        ready!(timer.poll_idle(cx, activity, timeouts.body_idle, None, unacked));
                        return Poll::Ready(Err(Reason::ClientWriteTimeout));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// True if the client has reset the connection. Does not wait.
    pub(super) async fn is_disconnected(&self) -> bool {
        poll_fn(|cx| Poll::Ready(self.side.poll_disconnected(cx).is_ready())).await
    }

    /// Waits until anything wakes the task; true if the client has reset the connection. Detects
    /// a reset while no read or write is pending on the client.
    pub(super) async fn is_disconnected_when_woken(&self) -> bool {
        let mut has_waited = false;
        poll_fn(|cx| {
            if self.side.poll_disconnected(cx).is_ready() {
                return Poll::Ready(true);
            }
            if std::mem::replace(&mut has_waited, true) {
                Poll::Ready(false)
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        io::Write as _,
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;
    use crate::{net::fixture, proxy::connections::ClientConnections};

    #[tokio::test]
    async fn a_connection_told_to_close_answers_what_is_there_once_the_driver_has_seen_it() {
        let (peer, stream) = fixture::pair().await;
        let mut peer = peer.into_std().unwrap();
        let connections = Rc::new(ClientConnections::default());
        connections.drain();
        let bind = Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()));
        let entry = connections.enter(Rc::clone(&bind));
        let mut client = ClientConnection::new(stream, None, bind, entry, None);
        // tokio reports a new stream readable until the first `WouldBlock`.
        assert!(client.side.try_read(&mut [0]).is_err());
        assert!(!client.wait_for_request(None).await, "nothing is there");
        peer.write_all(b"GET").unwrap();
        let mut wait = pin!(client.wait_for_request(None));
        let poll = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            poll.is_pending(),
            "going on without the event would be a busy loop"
        );
        assert!(wait.await);
    }
}
