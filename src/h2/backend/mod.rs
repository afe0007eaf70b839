//! HTTP/2 connection to a backend, shared by many exchanges with a stream each.
//!
//! Opens the connection, drives it, and tells whether it can take another stream. The caller
//! decides which exchanges share it.

mod outgoing;
mod stream_limit;

pub use self::{
    outgoing::{OutgoingStream, StreamRefusal},
    stream_limit::StreamLimit,
};

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep, sleep_until, timeout_at};

use super::{StreamError, connection::Connection};
use crate::{
    base::clock,
    http2::frame::ErrorCode,
    net::{connect::H2_NOT_NEGOTIATED, stream::Stream},
};

/// Time for an idle connection to close after GOAWAY.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without a frame after which an abandoned exchange makes us probe the backend.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the backend to answer the probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Cause of a failed HTTP/2 handshake.
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
    /// The connection was closed.
    #[error("{0}")]
    Ended(#[from] StreamError),
}

/// Use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionUse {
    /// Open, without a stream.
    Idle,
    /// With streams.
    Active,
}

/// Told when the use of a connection changes, from one to another; `None` before it is open and
/// after it was closed.
pub type OnUseChange = Box<dyn Fn(Option<ConnectionUse>, Option<ConnectionUse>)>;

/// Connection to a backend that speaks HTTP/2.
pub struct H2Connection {
    engine: Rc<Connection>,
    on_use_change: OnUseChange,
    is_secure: bool,
    opened_at: Instant,
    open_streams: Cell<usize>,
    streams_opened: Cell<u64>,
    /// Start of the time without streams.
    idle_since: Cell<Instant>,
    /// No more streams are opened.
    retired: Cell<bool>,
    /// The driver has ended.
    closed: Cell<bool>,
    /// Concurrent streams for which there are receive windows.
    max_streams: usize,
    /// Concurrent streams, as learned from refusals.
    stream_limit: Rc<StreamLimit>,
    /// The backend has been blamed for refusing requests on this connection: once is enough.
    failure_recorded: Cell<bool>,
}

impl std::fmt::Debug for H2Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Connection")
            .field("open_streams", &self.open_streams)
            .field("retired", &self.retired)
            .finish_non_exhaustive()
    }
}

impl H2Connection {
    /// Performs the HTTP/2 handshake on `stream`, a new connection to a backend. Ready when the
    /// backend has sent SETTINGS and allows a stream. The driver must be run while the connection
    /// is used; it gives the cause of the end. At most `streams` are open at a time; `limit` is
    /// shared by all connections to this backend.
    pub async fn open(
        stream: Stream,
        on_use_change: OnUseChange,
        streams: usize,
        limit: Rc<StreamLimit>,
        deadline: Instant,
    ) -> Result<(Rc<Self>, impl Future<Output = Option<StreamError>> + use<>), H2HandshakeError>
    {
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
            on_use_change,
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
        connection.change_use(None, Some(ConnectionUse::Idle));
        let driver = drive(DriverGuard(Rc::clone(&connection)));
        Ok((connection, driver))
    }

    /// Opens a stream for one exchange if fewer than `most` are open; `None` if the connection is
    /// full or retired.
    pub fn open_stream(self: &Rc<Self>, most: usize) -> Option<OutgoingStream> {
        if self.engine.is_output_full() {
            self.retire();
        }
        let most = most.min(self.max_allowed_streams()).min(self.max_streams);
        if self.is_retired() || self.open_streams.get() >= most {
            return None;
        }
        // Requests that the backend does not read may block its window for long.
        if self.engine.is_window_stalled() {
            return None;
        }
        self.streams_opened.set(self.streams_opened.get() + 1);
        Some(OutgoingStream::new(Rc::clone(self)))
    }

    /// Concurrent streams that the backend allows (SETTINGS_MAX_CONCURRENT_STREAMS); `usize::MAX`
    /// if it has not said.
    pub fn max_allowed_streams(&self) -> usize {
        let allowed = self
            .engine
            .with_backend(|backend| backend.max_streams)
            .flatten();
        allowed.map_or(usize::MAX, |allowed| allowed as usize)
    }

    /// Learns from RST_STREAM with REFUSED_STREAM or ENHANCE_YOUR_CALM on stream `id`, opened at
    /// `epoch` of the limit. With other streams open it means that the connection is full; without,
    /// that the backend takes no requests.
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
        // All refusals of one burst count once.
        let is_new = epoch == self.stream_limit.epoch();
        let streams = if is_new { others / 2 } else { others };
        self.stream_limit.lower(streams, clock::now());
        StreamRefusal::Overloaded
    }

    /// A GOAWAY excluded a stream. That is normal at a restart; only a connection that closes
    /// before any response is held against the backend, once for all its streams.
    fn on_not_processed(&self) -> StreamRefusal {
        self.retire();
        let has_responded = self.engine.with_backend(|backend| backend.has_responded);
        if has_responded == Some(false) && !self.failure_recorded.replace(true) {
            return StreamRefusal::Outright;
        }
        StreamRefusal::Full
    }

    /// Opens no more streams; closes the connection when the open ones have ended.
    pub fn retire(&self) {
        if !self.retired.replace(true) && self.open_streams.get() == 0 {
            self.engine.begin_shutdown();
        }
    }

    /// Probes the backend after an exchange was abandoned, if nothing was received for a while. The
    /// connection is retired if the probe is not answered: one that stalls one stream would stall
    /// the next as well.
    pub fn probe_if_stalled(&self) {
        if self.engine.unanswered_for() >= STALL_TIMEOUT && !self.is_retired() {
            self.engine.probe();
        }
    }

    /// True if no stream can be opened any more.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// True if the backend supports extended CONNECT, RFC 8441 section 3.
    pub fn supports_extended_connect(&self) -> bool {
        let takes = self.engine.with_backend(|backend| backend.supports_connect);
        takes == Some(true)
    }

    /// Time at which it was opened.
    pub const fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Number of streams opened so far.
    pub fn streams_opened(&self) -> u64 {
        self.streams_opened.get()
    }

    /// Start of the time without streams; `None` while there are some.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.open_streams.get() == 0).then(|| self.idle_since.get())
    }

    /// Frees the memory of the encoder of field blocks.
    pub fn release_field_table(&self) {
        self.engine.release_field_table();
    }

    /// True if the driver has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// True if the connection is encrypted.
    pub const fn is_secure(&self) -> bool {
        self.is_secure
    }

    fn change_use(&self, from: Option<ConnectionUse>, to: Option<ConnectionUse>) {
        (self.on_use_change)(from, to);
    }

    /// Underlying connection.
    #[cfg(test)]
    pub(super) fn engine(&self) -> &Connection {
        &self.engine
    }

    fn add_stream(&self) {
        if self.open_streams.get() == 0 {
            self.change_use(Some(ConnectionUse::Idle), Some(ConnectionUse::Active));
        }
        self.open_streams.set(self.open_streams.get() + 1);
    }

    fn remove_stream(&self) {
        self.open_streams.set(self.open_streams.get() - 1);
        if self.open_streams.get() > 0 {
            return;
        }
        self.idle_since.set(clock::now());
        let is_open = !self.closed.get();
        let now = is_open.then_some(ConnectionUse::Idle);
        self.change_use(Some(ConnectionUse::Active), now);
        if self.is_retired() {
            self.engine.begin_shutdown();
        }
    }

    fn on_closed(&self) {
        self.retire();
        drop(self.engine.take_stream());
        if !self.closed.replace(true) && self.open_streams.get() == 0 {
            self.change_use(Some(ConnectionUse::Idle), None);
        }
    }
}

/// Removes the connection from the counters, also when the driver is dropped at the end of its
/// worker.
struct DriverGuard(Rc<H2Connection>);

impl Drop for DriverGuard {
    fn drop(&mut self) {
        self.0.on_closed();
    }
}

/// Drives the connection until it is closed; gives the cause, if there is one.
async fn drive(connection: DriverGuard) -> Option<StreamError> {
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
    connection.engine.close_reason()
}

impl H2Connection {
    /// Retires the connection if the backend did not answer the probe in time.
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

    /// Ready when a retired connection did not close in time.
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
