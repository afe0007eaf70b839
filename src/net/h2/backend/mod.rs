//! One HTTP/2 connection to a backend, which many exchanges share: a stream for each.
//!
//! Begins the connection, drives its frames, says whether it has room. Who shares it, and with whom, is decided above.

mod outgoing;
mod request;
pub(super) mod response;
mod stream_limit;

pub(super) use self::response::ResponseExpectation;
pub use self::{
    outgoing::{OutgoingStream, StreamRefusal, is_inexpressible},
    stream_limit::StreamLimit,
};

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep, sleep_until, timeout_at};

use super::{StreamError, connection::Connection};
use crate::{
    base::clock,
    http2::frame::ErrorCode,
    net::{connect::H2_NOT_NEGOTIATED, stream::Stream},
    pool::BackendState,
    telemetry::metrics::BackendSlot,
};

/// Interim responses of a stream that cost nothing: as many at once are passed on.
pub(super) const FREE_INTERIM_RESPONSES: u32 = 16;
/// How long a connection may take to say goodbye when nothing is on it any more.
const PARTING: Duration = Duration::from_secs(2);
/// Silence of a connection on which an exchange was given up, after which the backend is asked for a sign of life.
const STALL_TIME: Duration = Duration::from_secs(1);
/// Time for that sign.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Cause of a connection on which HTTP/2 could not begin.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum H2HandshakeError {
    /// TLS did not negotiate HTTP/2.
    #[error("{H2_NOT_NEGOTIATED}")]
    NotNegotiated,
    /// The backend sent no SETTINGS before the deadline.
    #[error("no HTTP/2 settings in time")]
    NoSettings,
    /// The backend allowed no stream before the deadline.
    #[error("the backend allows no streams (SETTINGS_MAX_CONCURRENT_STREAMS 0)")]
    NoStreams,
    /// The connection ended.
    #[error("{0}")]
    Ended(#[from] StreamError),
}

/// A connection to a backend that speaks HTTP/2.
#[derive(Debug)]
pub struct H2Connection {
    connection: Rc<Connection>,
    /// Whose counters it is in; `None` for a check.
    state: Option<Arc<BackendState>>,
    is_secure: bool,
    born: Instant,
    open: Cell<usize>,
    begun: Cell<u64>,
    /// Since when it has had no stream.
    idle_since: Cell<Instant>,
    /// No more streams may begin.
    retired: Cell<bool>,
    /// Its driver has ended.
    over: Cell<bool>,
    /// Streams at a time for which there are windows.
    streams: usize,
    /// Streams at a time, as learned from refusals.
    limit: Rc<StreamLimit>,
    /// It has been held against the backend that this connection takes no request.
    noted: Cell<bool>,
}

impl H2Connection {
    /// Performs the HTTP/2 handshake on `stream`, a new connection to the backend of `state`: ready when the backend has sent
    /// its settings and allows a stream. The driver must be run as long as the link is used. Without a `state` it is in no
    /// counters. At most `streams` are begun at a time; `limit` is what the refusals of this backend have shown.
    pub async fn open(
        stream: Stream,
        state: Option<&Arc<BackendState>>,
        streams: usize,
        limit: Rc<StreamLimit>,
        deadline: Instant,
    ) -> Result<(Rc<Self>, impl Future<Output = ()> + use<>), H2HandshakeError> {
        if stream.tls().is_some_and(|tls| !tls.negotiated().h2) {
            return Err(H2HandshakeError::NotNegotiated);
        }
        let is_secure = stream.tls().is_some();
        let connection = Connection::of_backend(stream, streams);
        let greeting = poll_fn(|cx| match connection.poll(cx) {
            Poll::Pending if connection.takes_streams() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(Err(connection.fate().unwrap_or(StreamError::Lost))),
        });
        let Ok(greeted) = timeout_at(deadline.into(), greeting).await else {
            return Err(if connection.is_greeted() {
                H2HandshakeError::NoStreams
            } else {
                H2HandshakeError::NoSettings
            });
        };
        greeted?;
        let now = clock::now();
        let link = Rc::new(Self {
            connection,
            state: state.map(Arc::clone),
            is_secure,
            born: now,
            open: Cell::new(0),
            begun: Cell::new(0),
            idle_since: Cell::new(now),
            retired: Cell::new(false),
            over: Cell::new(false),
            streams,
            limit,
            noted: Cell::new(false),
        });
        link.count(|metrics| metrics.connections_idle.add(1));
        let driver = drive(DriverGuard(Rc::clone(&link)));
        Ok((link, driver))
    }

    /// A stream for one exchange, if less than `most` are open. `None`: there is no room, or none may begin any more.
    pub fn stream(self: &Rc<Self>, most: usize) -> Option<OutgoingStream> {
        if self.connection.is_clogged() {
            self.retire();
        }
        let most = most.min(self.allowed()).min(self.streams);
        if self.is_retired() || self.open.get() >= most {
            return None;
        }
        // Requests that the backend does not read may hold its window for long.
        if self.connection.is_stalled() {
            return None;
        }
        self.begun.set(self.begun.get() + 1);
        Some(OutgoingStream::new(Rc::clone(self)))
    }

    /// Streams at a time that the backend allows (SETTINGS_MAX_CONCURRENT_STREAMS); `usize::MAX` where it has not said.
    pub fn allowed(&self) -> usize {
        let allowed = self.connection.backend(|backend| backend.most).flatten();
        allowed.map_or(usize::MAX, |allowed| allowed as usize)
    }

    /// Learns from RST_STREAM REFUSED_STREAM or ENHANCE_YOUR_CALM on stream `id`, which began at `epoch` of the limit. Beside
    /// other streams it says that the connection is full; alone it says that the backend takes nothing.
    fn refused(&self, id: u32, epoch: u32, code: ErrorCode) -> StreamRefusal {
        let others = self.connection.live_beside(id);
        if others == 0 {
            self.limit.forget();
            self.retire();
            return StreamRefusal::Outright;
        }
        if code == ErrorCode::REFUSED_STREAM {
            self.limit.lower(others, clock::now());
            return StreamRefusal::Full;
        }
        // One burst of refusals says one thing.
        let is_new = epoch == self.limit.epoch();
        let streams = if is_new { others / 2 } else { others };
        self.limit.lower(streams, clock::now());
        StreamRefusal::Overloaded
    }

    /// A GOAWAY has left out a stream. An orderly end is nothing against the backend, a connection that ends before it has
    /// answered anything is; once for all its streams.
    fn left_out(&self) -> StreamRefusal {
        self.retire();
        let has_answered = self.connection.backend(|backend| backend.has_answered);
        if has_answered == Some(false) && !self.noted.replace(true) {
            return StreamRefusal::Outright;
        }
        StreamRefusal::Full
    }

    /// No stream begins any more; those that are open come to their end.
    pub fn retire(&self) {
        if !self.retired.replace(true) && self.open.get() == 0 {
            self.connection.leave();
        }
    }

    /// An exchange did not wait for its answer any longer. Where nothing was received for a while the backend may be quiet
    /// or gone: it is asked, and the connection is retired if it does not answer.
    pub fn doubt(&self) {
        if self.connection.silence() >= STALL_TIME && !self.is_retired() {
            self.connection.probe();
        }
    }

    /// No stream can begin any more.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The backend takes WebSockets, RFC 8441 section 3.
    pub fn takes_websockets(&self) -> bool {
        let takes = self.connection.backend(|backend| backend.takes_connect);
        takes == Some(true)
    }

    /// When it was made.
    pub const fn born(&self) -> Instant {
        self.born
    }

    /// Streams that it has had.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Since when it has had no stream; `None` while it has.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.idle_since.get())
    }

    /// Its driver has ended.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    fn count(&self, change: impl FnOnce(&BackendSlot)) {
        if let Some(state) = &self.state {
            change(state.metrics.mine());
        }
    }

    /// What it is made of.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn enter(&self) {
        if self.open.get() == 0 {
            self.count(|metrics| {
                metrics.connections_idle.sub(1);
                metrics.connections_active.add(1);
            });
        }
        self.open.set(self.open.get() + 1);
    }

    fn leave(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        self.idle_since.set(clock::now());
        self.count(|metrics| {
            metrics.connections_active.sub(1);
            if !self.over.get() {
                metrics.connections_idle.add(1);
            }
        });
        if self.is_retired() {
            self.connection.leave();
        }
    }

    fn end(&self) {
        self.retire();
        drop(self.connection.take_stream());
        if !self.over.replace(true) && self.open.get() == 0 {
            self.count(|metrics| metrics.connections_idle.sub(1));
        }
    }
}

/// Counts the link out when its driver is dropped as well, at the end of its worker.
struct DriverGuard(Rc<H2Connection>);

impl Drop for DriverGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Drives the connection of `link` until it is over.
async fn drive(link: DriverGuard) {
    let link = &link.0;
    let mut parting: Option<Pin<Box<Sleep>>> = None;
    let mut probe: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if link.connection.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let is_over = link.connection.fate().is_some();
        if is_over || link.connection.backend(|it| it.is_leaving) == Some(true) {
            link.retire();
        }
        link.poll_probe(cx, &mut probe);
        link.poll_parting(cx, &mut parting)
    })
    .await;
    if let Some(ended @ StreamError::Failed(_)) = link.connection.fate() {
        let backend = link.state.as_ref().map(|state| &state.address);
        tracing::debug!(target: "http", ?backend, %ended, "http/2 connection failed");
    }
}

impl H2Connection {
    /// Retires the connection when the backend has not answered in time that it is there.
    fn poll_probe(&self, cx: &mut Context<'_>, timer: &mut Option<Pin<Box<Sleep>>>) {
        let probed = self.connection.backend(|backend| backend.probed).flatten();
        let Some(probed) = probed.filter(|_| !self.is_retired()) else {
            *timer = None;
            return;
        };
        let due = probed + PROBE_TIMEOUT;
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        if timer.deadline() != due.into() {
            timer.as_mut().reset(due.into());
        }
        if timer.as_mut().poll(cx).is_ready() {
            self.retire();
        }
    }

    /// Ready when the connection should have ended by itself.
    fn poll_parting(&self, cx: &mut Context<'_>, timer: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        if self.open.get() > 0 || !self.is_retired() {
            *timer = None;
            return Poll::Pending;
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(PARTING)));
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests;
