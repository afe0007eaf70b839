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
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence of a connection on which an exchange was given up, after which the backend is asked for a sign of life.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
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
    engine: Rc<Connection>,
    /// Whose counters it is in; `None` for a check.
    state: Option<Arc<BackendState>>,
    is_secure: bool,
    opened_at: Instant,
    open_streams: Cell<usize>,
    streams_opened: Cell<u64>,
    /// Since when it has had no stream.
    idle_since: Cell<Instant>,
    /// No more streams may begin.
    retired: Cell<bool>,
    /// Its driver has ended.
    closed: Cell<bool>,
    /// Streams at a time for which there are windows.
    max_streams: usize,
    /// Streams at a time, as learned from refusals.
    stream_limit: Rc<StreamLimit>,
    /// It has been held against the backend that this connection takes no request.
    failure_recorded: Cell<bool>,
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
        let engine = Connection::of_backend(stream, streams);
        let handshake = poll_fn(|cx| match engine.poll(cx) {
            Poll::Pending if engine.accepts_streams() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(Err(engine.close_reason().unwrap_or(StreamError::Lost))),
        });
        let Ok(done) = timeout_at(deadline.into(), handshake).await else {
            return Err(if engine.settings_received() {
                H2HandshakeError::NoStreams
            } else {
                H2HandshakeError::NoSettings
            });
        };
        done?;
        let now = clock::now();
        let connection = Rc::new(Self {
            engine,
            state: state.map(Arc::clone),
            is_secure,
            opened_at: now,
            open_streams: Cell::new(0),
            streams_opened: Cell::new(0),
            idle_since: Cell::new(now),
            retired: Cell::new(false),
            closed: Cell::new(false),
            max_streams: streams,
            stream_limit: limit,
            failure_recorded: Cell::new(false),
        });
        connection.count(|metrics| metrics.connections_idle.add(1));
        let driver = drive(DriverGuard(Rc::clone(&connection)));
        Ok((connection, driver))
    }

    /// A stream for one exchange, if less than `most` are open. `None`: there is no room, or none may begin any more.
    pub fn open_stream(self: &Rc<Self>, most: usize) -> Option<OutgoingStream> {
        if self.engine.is_output_full() {
            self.retire();
        }
        let most = most.min(self.max_allowed_streams()).min(self.max_streams);
        if self.is_retired() || self.open_streams.get() >= most {
            return None;
        }
        // Requests that the backend does not read may hold its window for long.
        if self.engine.is_window_stalled() {
            return None;
        }
        self.streams_opened.set(self.streams_opened.get() + 1);
        Some(OutgoingStream::new(Rc::clone(self)))
    }

    /// Streams at a time that the backend allows (SETTINGS_MAX_CONCURRENT_STREAMS); `usize::MAX` where it has not said.
    pub fn max_allowed_streams(&self) -> usize {
        let allowed = self
            .engine
            .with_backend(|backend| backend.max_streams)
            .flatten();
        allowed.map_or(usize::MAX, |allowed| allowed as usize)
    }

    /// Learns from RST_STREAM REFUSED_STREAM or ENHANCE_YOUR_CALM on stream `id`, which began at `epoch` of the limit. Beside
    /// other streams it says that the connection is full; alone it says that the backend takes nothing.
    fn on_refused(&self, id: u32, epoch: u32, code: ErrorCode) -> StreamRefusal {
        let others = self.engine.other_open_streams(id);
        if others == 0 {
            self.stream_limit.forget();
            self.retire();
            return StreamRefusal::Outright;
        }
        if code == ErrorCode::REFUSED_STREAM {
            self.stream_limit.lower(others, clock::now());
            return StreamRefusal::Full;
        }
        // One burst of refusals says one thing.
        let is_new = epoch == self.stream_limit.epoch();
        let streams = if is_new { others / 2 } else { others };
        self.stream_limit.lower(streams, clock::now());
        StreamRefusal::Overloaded
    }

    /// A GOAWAY has left out a stream. An orderly end is nothing against the backend, a connection that ends before it has
    /// answered anything is; once for all its streams.
    fn on_not_processed(&self) -> StreamRefusal {
        self.retire();
        let has_responded = self.engine.with_backend(|backend| backend.has_responded);
        if has_responded == Some(false) && !self.failure_recorded.replace(true) {
            return StreamRefusal::Outright;
        }
        StreamRefusal::Full
    }

    /// No stream begins any more; those that are open come to their end.
    pub fn retire(&self) {
        if !self.retired.replace(true) && self.open_streams.get() == 0 {
            self.engine.begin_shutdown();
        }
    }

    /// An exchange did not wait for its answer any longer. Where nothing was received for a while the backend may be quiet
    /// or gone: it is asked, and the connection is retired if it does not answer.
    pub fn probe_if_stalled(&self) {
        if self.engine.unanswered_for() >= STALL_TIMEOUT && !self.is_retired() {
            self.engine.probe();
        }
    }

    /// No stream can begin any more.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The backend takes WebSockets, RFC 8441 section 3.
    pub fn supports_websockets(&self) -> bool {
        let takes = self.engine.with_backend(|backend| backend.supports_connect);
        takes == Some(true)
    }

    /// When it was made.
    pub const fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Streams that it has had.
    pub fn streams_opened(&self) -> u64 {
        self.streams_opened.get()
    }

    /// Since when it has had no stream; `None` while it has.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.open_streams.get() == 0).then(|| self.idle_since.get())
    }

    /// Its driver has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    fn count(&self, change: impl FnOnce(&BackendSlot)) {
        if let Some(state) = &self.state {
            change(state.metrics.mine());
        }
    }

    /// What it is made of.
    #[cfg(test)]
    pub(super) fn engine(&self) -> &Connection {
        &self.engine
    }

    fn add_stream(&self) {
        if self.open_streams.get() == 0 {
            self.count(|metrics| {
                metrics.connections_idle.sub(1);
                metrics.connections_active.add(1);
            });
        }
        self.open_streams.set(self.open_streams.get() + 1);
    }

    fn remove_stream(&self) {
        self.open_streams.set(self.open_streams.get() - 1);
        if self.open_streams.get() > 0 {
            return;
        }
        self.idle_since.set(clock::now());
        self.count(|metrics| {
            metrics.connections_active.sub(1);
            if !self.closed.get() {
                metrics.connections_idle.add(1);
            }
        });
        if self.is_retired() {
            self.engine.begin_shutdown();
        }
    }

    fn on_closed(&self) {
        self.retire();
        drop(self.engine.take_stream());
        if !self.closed.replace(true) && self.open_streams.get() == 0 {
            self.count(|metrics| metrics.connections_idle.sub(1));
        }
    }
}

/// Counts the link out when its driver is dropped as well, at the end of its worker.
struct DriverGuard(Rc<H2Connection>);

impl Drop for DriverGuard {
    fn drop(&mut self) {
        self.0.on_closed();
    }
}

/// Drives the connection of `link` until it is over.
async fn drive(connection: DriverGuard) {
    let connection = &connection.0;
    let mut close_timer: Option<Pin<Box<Sleep>>> = None;
    let mut probe: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if connection.engine.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let is_over = connection.engine.close_reason().is_some();
        if is_over || connection.engine.with_backend(|it| it.is_closing) == Some(true) {
            connection.retire();
        }
        connection.poll_probe(cx, &mut probe);
        connection.poll_close_timeout(cx, &mut close_timer)
    })
    .await;
    if let Some(ended @ StreamError::Failed(_)) = connection.engine.close_reason() {
        let backend = connection.state.as_ref().map(|state| &state.address);
        tracing::debug!(target: "http", ?backend, %ended, "http/2 connection failed");
    }
}

impl H2Connection {
    /// Retires the connection when the backend has not answered in time that it is there.
    fn poll_probe(&self, cx: &mut Context<'_>, timer: &mut Option<Pin<Box<Sleep>>>) {
        let probed = self
            .engine
            .with_backend(|backend| backend.probed_at)
            .flatten();
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
    fn poll_close_timeout(
        &self,
        cx: &mut Context<'_>,
        timer: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<()> {
        if self.open_streams.get() > 0 || !self.is_retired() {
            *timer = None;
            return Poll::Pending;
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIMEOUT)));
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests;
