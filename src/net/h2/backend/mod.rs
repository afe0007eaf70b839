//! One HTTP/2 connection to a backend, which many exchanges share: a stream for each.
//!
//! Begins the connection, drives its frames, says whether it has room. Who shares it, and with whom, is decided above.

mod outgoing;
mod request;
mod response;

use self::outgoing::reason_of;
pub use self::outgoing::{Outgoing, fault, is_inexpressible};

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use tokio::time::{Sleep, sleep, timeout_at};

use super::watch::{Account, Watched};
use crate::{
    base::clock,
    http1::response::MAX_HEAD,
    net::{
        connect::ConnectError,
        stream::Stream,
        tls::{Failed, Fault, NOT_H2},
    },
    pool::BackendState,
    reason::Reason,
};

/// Most exchanges at a time on one connection, where the backend allows more: beyond that another connection spreads them
/// better over what the backend has.
const STREAMS: usize = 100;
/// Bytes of a response that a stream may hold unread.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection: those that nobody reads must not hold up the others.
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;
/// Bytes of a request that a stream may hold unsent.
const SEND_BUFFER: usize = 64 << 10;
/// How long a connection may take to say goodbye when nothing is on it any more.
const PARTING: Duration = Duration::from_secs(2);

/// How long a backend may say nothing at all on a connection on which an exchange ran out of its time.
const SILENCE: Duration = Duration::from_secs(1);

/// A connection to a backend that speaks HTTP/2.
#[derive(Debug)]
pub struct Link {
    /// `None` when no more streams may begin.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    account: Rc<Account>,
    state: Arc<BackendState>,
    is_secure: bool,
    born: Instant,
    open: Cell<usize>,
    begun: Cell<u64>,
    /// Since when it has had no stream.
    idle_since: Cell<Instant>,
    /// Its driver has ended.
    over: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl Link {
    /// Takes up HTTP/2 on `stream`, which is a new connection to the backend of `state`: ready when the backend has sent its
    /// settings, without which it would not be known what it allows, nor whether it speaks HTTP/2 at all. The driver must
    /// be run as long as the link is used.
    pub async fn open(
        stream: Stream,
        state: &Arc<BackendState>,
        deadline: Instant,
    ) -> Result<(Rc<Self>, impl Future<Output = ()> + use<>), ConnectError> {
        if stream.tls().is_some_and(|tls| !tls.agreed().h2) {
            return Err(Failed::new(Fault::Alpn, NOT_H2).into());
        }
        let is_secure = stream.tls().is_some();
        let (watched, account) = Watched::of_backend(stream);
        let greeting = greet(watched, &account);
        let Ok(greeted) = timeout_at(deadline.into(), greeting).await else {
            return Err(ConnectError {
                reason: Reason::ConnectionTimeout,
                source: io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 settings in time"),
            });
        };
        let (sender, connection) = greeted.map_err(|error| ConnectError {
            reason: reason_of(&error),
            source: io::Error::other(error),
        })?;
        let now = clock::now();
        state.metrics.mine().connections_idle.add(1);
        let link = Rc::new(Self {
            sender: RefCell::new(Some(sender)),
            account,
            state: Arc::clone(state),
            is_secure,
            born: now,
            open: Cell::new(0),
            begun: Cell::new(0),
            idle_since: Cell::new(now),
            over: Cell::new(false),
            driver: RefCell::default(),
        });
        let driver = drive(Driven(Rc::clone(&link)), connection);
        Ok((link, driver))
    }

    /// A stream for one exchange. `None`: there is no room, or none may begin any more.
    pub fn stream(self: &Rc<Self>) -> Option<Outgoing> {
        let sender = self.sender.borrow();
        let sender = sender.as_ref().filter(|_| self.room() > 0)?;
        let stream = Outgoing::new(Rc::clone(self), sender.clone());
        self.begun.set(self.begun.get() + 1);
        Some(stream)
    }

    /// How many more exchanges may begin.
    pub fn room(&self) -> usize {
        let sender = self.sender.borrow();
        sender.as_ref().map_or(0, |sender| {
            let most = sender.current_max_send_streams().min(STREAMS);
            most.saturating_sub(self.open.get())
        })
    }

    /// No stream begins any more; those that are open come to their end.
    pub fn retire(&self) {
        self.sender.take();
        // Where nothing was open, that was the last reference.
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    /// An exchange did not wait for its answer any longer: where nothing at all comes, others would not get theirs either.
    pub fn doubt(&self) {
        if self.account.silence() >= SILENCE {
            self.retire();
        }
    }

    /// No stream can begin any more.
    pub fn is_retired(&self) -> bool {
        self.sender.borrow().is_none()
    }

    /// The backend takes WebSockets, RFC 8441 section 3.
    pub fn takes_websockets(&self) -> bool {
        let sender = self.sender.borrow();
        sender
            .as_ref()
            .is_some_and(SendRequest::is_extended_connect_protocol_enabled)
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

    fn enter(&self) {
        let metrics = self.state.metrics.mine();
        if self.open.get() == 0 {
            metrics.connections_idle.sub(1);
            metrics.connections_active.add(1);
        }
        self.open.set(self.open.get() + 1);
    }

    fn leave(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        self.idle_since.set(clock::now());
        let metrics = self.state.metrics.mine();
        metrics.connections_active.sub(1);
        if !self.over.get() {
            metrics.connections_idle.add(1);
        }
    }

    fn end(&self) {
        self.retire();
        drop(self.account.take_stream());
        if !self.over.replace(true) && self.open.get() == 0 {
            self.state.metrics.mine().connections_idle.sub(1);
        }
    }
}

/// Counts the link out when its driver is dropped as well, at the end of its worker.
struct Driven(Rc<Link>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.end();
    }
}

type Sender = SendRequest<Bytes>;
type Frames = Box<Connection<Watched, Bytes>>;

async fn greet(watched: Watched, account: &Account) -> Result<(Sender, Frames), h2::Error> {
    let (sender, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        // Twice what is allowed, so that we can say of most heads that are too large that this is what is wrong.
        .max_header_list_size(2 * MAX_HEAD as u32)
        .handshake(watched)
        .await?;
    let mut connection = Box::new(connection);
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(closed())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending if account.has_settings() => Poll::Ready(Ok(())),
        Poll::Pending if account.is_spent() => {
            Poll::Ready(Err(h2::Reason::ENHANCE_YOUR_CALM.into()))
        }
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((sender, connection))
}

/// The backend has ended the connection before it was one.
fn closed() -> h2::Error {
    h2::Reason::NO_ERROR.into()
}

/// Drives the frames of the connection of `link` until it is over; the connection is dropped first.
async fn drive(link: Driven, mut connection: Frames) {
    let mut parting: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    tracing::debug!(target: "http", backend = %link.0.state.address, %error, "http/2 connection failed");
                }
                return Poll::Ready(());
            }
            Poll::Pending => {}
        }
        let account = &link.0.account;
        if account.is_spent() {
            tracing::debug!(target: "http", backend = %link.0.state.address, "http/2 flood");
            return Poll::Ready(());
        }
        if account.is_leaving() {
            link.0.retire();
        }
        link.0.poll_parting(cx, &mut parting)
    })
    .await;
}

impl Link {
    /// Ready when the connection should have ended by itself.
    fn poll_parting(&self, cx: &mut Context<'_>, timer: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        let mut driver = self.driver.borrow_mut();
        match &mut *driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        drop(driver);
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
