//! HTTP from a client's connection to a backend and back. An HTTP/2 stream is a connection of its own here (`http2.rs`).
//!
//! [`serve`] runs one client connection: wait for a request, run the exchange, wait again. One exchange reads from top to
//! bottom in `exchange.rs`: read the head → route → pick → forward → reply; one try on one backend is `attempt.rs`, one after
//! another `attempts.rs`, and
//! what follows its response head `respond.rs`.
//! While a connection waits it holds no buffer and no exchange.

mod acquire;
mod attempt;
mod attempts;
mod client_address;
mod exchange;
mod facts;
mod forward;
mod grpc;
mod http2;
mod interim;
mod limit;
mod pace;
pub(super) mod pump;
mod read;
mod reply;
mod respond;
mod retry;

pub(super) use self::client_address::is_allowed;
/// What is written to the other side: public so that the fuzz targets check these and not a copy.
pub use self::{
    forward::{
        BodyDelivery, NextHop, RequestChanges, RequestOrigin, ResponseExtra, interim_head,
        request_head, response_head,
    },
    pump::{Pump, PumpError},
};

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::IpAddr,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::task::yield_now;

use super::{connections::ConnectionHandle, timer::Timer, worker::Worker};
use crate::{
    base::{address::BindAddress, clock, socket_key::SocketKey},
    http1::{request, response},
    net::{
        buffer::{BufferSize, PooledBuffer},
        proxy_protocol::{ConnectionEnds, ProxyHeader},
        stream::Stream,
    },
    reason::Reason,
    snapshot::Snapshot,
};

/// Bytes that a lingering connection discards before others have their turn.
const MAX_DISCARD_BYTES_PER_POLL: usize = 1 << 20;

/// How long a closing connection goes on to discard what its client sends, so that the client gets to read the response
/// (RFC 9112 section 9.6).
#[derive(Debug, Clone, Copy)]
struct LingerLimits {
    /// The most, while the client goes on sending.
    total: Duration,
    /// The most without a byte.
    idle: Duration,
    /// Connections and streams of a worker that may linger at a time; more are closed at once.
    max_connections: usize,
}

/// After a response to a request whose body was not read to its end. Many clients read nothing before they have sent
/// everything, and lose the response otherwise.
const LINGER_AFTER_RESPONSE: LingerLimits = LingerLimits {
    total: Duration::from_mins(1),
    idle: Duration::from_secs(5),
    max_connections: 1_024,
};
/// After a refusal, or the end of an HTTP/2 connection: no request of such a client is under way. The same while balancer
/// drains.
const LINGER_AFTER_GOAWAY: LingerLimits = LingerLimits {
    total: Duration::from_secs(8),
    idle: Duration::from_secs(2),
    max_connections: 256,
};

/// Requests that are answered of what one read brought; the client sends what is behind them again.
const MAX_PIPELINED: u32 = 100;
/// Requests of a pipeline after which other connections get their turn.
const YIELD_EVERY: u32 = 8;
/// Memory that is given back when a buffer has grown beyond it.
const MAX_KEPT_CAPACITY_BYTES: usize = pump::GROWN_BUFFER_BYTES;

/// Memory of one exchange, used again by the next.
#[derive(Debug, Default)]
pub struct ExchangeBuffers {
    /// The request.
    head: request::RequestHead,
    /// The response.
    response: response::ResponseHead,
    /// What was read from the backend.
    response_bytes: Vec<u8>,
    /// What goes to the client.
    out: Vec<u8>,
    /// The head that the backend gets, kept for another try.
    request_out: Vec<u8>,
    /// What goes to the backend.
    upload_out: Vec<u8>,
    /// What was read of the request body.
    upload_bytes: Vec<u8>,
    /// The id of the request.
    request_id: String,
}

impl ExchangeBuffers {
    /// Forgets everything but the memory.
    pub(super) fn clear(&mut self) {
        self.head.clear();
        for buffer in [
            &mut self.head.bytes,
            &mut self.response_bytes,
            &mut self.out,
            &mut self.request_out,
            &mut self.upload_out,
            &mut self.upload_bytes,
        ] {
            buffer.clear();
            if buffer.capacity() > MAX_KEPT_CAPACITY_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

/// A client connection.
#[derive(Debug)]
pub struct ClientConnection {
    /// The stream.
    pub stream: Stream,
    /// The client's address; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// Where it was accepted.
    pub bind: Rc<SocketKey>,
    /// Its place among the worker's connections.
    pub entry: ConnectionHandle,
    /// What its PROXY header said, where the listener asks for one.
    pub proxy_header: Option<Box<ProxyHeader>>,
    timer: Timer,
    /// Generation and index of its listener, as of the last request.
    listener: Option<(u64, usize)>,
    /// By when the first request must be whole, until it is.
    first_request_deadline: Option<Instant>,
    /// Requests so far of what the last read brought.
    pipelined_requests: u32,
    /// Nothing has been asked on it.
    is_unused: bool,
}

/// What becomes of a connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterExchange {
    /// Another request may come.
    KeepAlive,
    /// Close it.
    Close,
    /// Close it, but let the client read what was sent although it may still be sending.
    Linger,
    /// Reset it: nothing may look complete.
    Reset,
    /// It speaks HTTP/2, as what was read of it shows.
    Http2,
}

impl ClientConnection {
    /// A connection that was just accepted. `header` is the time for its first request.
    pub fn new(
        stream: Stream,
        peer: Option<IpAddr>,
        bind: Rc<SocketKey>,
        entry: ConnectionHandle,
        header: Option<Duration>,
    ) -> Self {
        let now = clock::now();
        let first_request_deadline = header.map(|header| now + header);
        Self {
            stream,
            peer,
            bind,
            entry,
            proxy_header: None,
            timer: Timer::new(first_request_deadline.unwrap_or(now + Duration::from_hours(1))),
            listener: None,
            first_request_deadline,
            pipelined_requests: 0,
            is_unused: true,
        }
    }

    /// Both ends of the client's own connection; `None` where it has no addresses.
    fn ends(&self) -> Option<ConnectionEnds> {
        match &self.proxy_header {
            None => ConnectionEnds::of(&self.stream),
            Some(header) => header.ends(&self.stream),
        }
    }

    /// Local port that the client reached; `None` where it has no address.
    fn local_port(&self) -> Option<u16> {
        match (&self.proxy_header, &self.bind.address) {
            (None, BindAddress::Unix(_)) => None,
            (None, BindAddress::Ip(bind)) if bind.port() > 0 => Some(bind.port()),
            _ => self.ends().map(|ends| ends.destination.port()),
        }
    }

    /// The listener that serves this connection in `snapshot`; looked up once per generation.
    fn listener_of(&mut self, snapshot: &Snapshot) -> Option<usize> {
        if self
            .listener
            .is_none_or(|(generation, _)| generation != snapshot.generation)
        {
            let listener = snapshot.listener_index(&self.bind);
            self.listener = listener.map(|listener| (snapshot.generation, listener));
        }
        self.listener.map(|(_, listener)| listener)
    }

    /// Ends the connection in order. The last bytes go out before a reset can drop them, should the client have sent more.
    fn finish(&self) {
        // Fails only if the connection is gone already.
        let _ = self.stream.shutdown_write();
    }

    /// Waits for the first byte of a request; false if the connection is to be closed instead.
    async fn wait_for_request(&mut self, keepalive: Option<Duration>) -> bool {
        let deadline = self
            .first_request_deadline
            .or_else(|| keepalive.map(|keepalive| clock::now() + keepalive));
        let Self {
            stream,
            entry,
            timer,
            ..
        } = self;
        let readable = poll_fn(|cx| {
            let told_to_close = entry.wait(cx);
            if stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            // A request that the driver has not seen yet, as on a connection that comes from the queue, is answered: its
            // event is on the way.
            let is_over = told_to_close || timer.poll(cx, deadline).is_ready();
            if is_over && stream.has_no_pending_input() {
                return Poll::Ready(false);
            }
            Poll::Pending
        })
        .await;
        entry.busy();
        readable
    }
}

/// Serves `client` until its connection ends.
pub async fn serve(worker: Rc<Worker>, mut client: ClientConnection) {
    if client
        .stream
        .negotiated_tls()
        .is_some_and(|agreed| agreed.h2)
    {
        return Box::pin(http2::serve(worker, client, Vec::new())).await;
    }
    let mut pipelined: Option<Box<ExchangeBuffers>> = None;
    loop {
        if pipelined.is_none() {
            let generation = worker.generation();
            let Some(listener) = client
                .listener_of(&generation)
                .and_then(|listener| generation.listeners.get(listener))
            else {
                return;
            };
            let keepalive = listener.config.timeouts.keepalive;
            drop(generation);
            if !client.wait_for_request(keepalive).await {
                // The drop ends the connection as well, but under TLS that would look like a cut.
                if client.stream.tls().is_some() {
                    client.finish();
                }
                return;
            }
        }
        let mut buffers = pipelined.take().unwrap_or_else(|| worker.take_scratch());
        let mut next = Box::pin(exchange::run(&worker, &mut client, &mut buffers)).await;
        let has_pipelined = !buffers.head.bytes.is_empty();
        if next == AfterExchange::KeepAlive && has_pipelined {
            pipelined = Some(buffers);
            if client.pipelined_requests.is_multiple_of(YIELD_EVERY) {
                yield_now().await;
            }
            continue;
        }
        if next == AfterExchange::Http2 {
            let read = buffers.head.bytes.clone();
            worker.give_scratch(buffers);
            return Box::pin(http2::serve(worker, client, read)).await;
        }
        worker.give_scratch(buffers);
        // What is left unread would turn the close into a reset, which can destroy answers that the client has not read.
        if next == AfterExchange::Close && (has_pipelined || !client.stream.is_idle_and_open()) {
            next = AfterExchange::Linger;
        }
        match next {
            AfterExchange::KeepAlive | AfterExchange::Http2 => {}
            AfterExchange::Close => return client.finish(),
            AfterExchange::Reset => return client.stream.set_reset_on_close(),
            AfterExchange::Linger => {
                return Box::pin(linger(&worker.lingering, client, LINGER_AFTER_RESPONSE)).await;
            }
        }
    }
}

/// Ends our direction and discards what the client still sends, so that a reset does not destroy the last response on its
/// way (RFC 9112 section 9.6).
async fn linger(lingering: &Cell<usize>, mut client: ClientConnection, limits: LingerLimits) {
    let mut ended = false;
    if lingering.get() >= limits.max_connections || !try_shutdown_write(&client, &mut ended) {
        return;
    }
    lingering.set(lingering.get() + 1);
    let began = clock::now();
    let mut last_read = began;
    poll_fn(|cx| {
        while !ended && client.stream.poll_write_ready(cx).is_ready() {
            if !try_shutdown_write(&client, &mut ended) {
                return Poll::Ready(());
            }
        }
        let limits = if client.entry.close_signal.listen(cx) {
            LINGER_AFTER_GOAWAY
        } else {
            limits
        };
        let mut discarded = 0;
        loop {
            let mut waste = PooledBuffer::take(BufferSize::Medium);
            match client.stream.poll_read_buf(cx, &mut waste) {
                Poll::Ready(Ok(count @ 1..)) => {
                    discarded += count;
                    last_read = clock::now();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let deadline = (began + limits.total).min(last_read + limits.idle);
                    return client.timer.poll(cx, Some(deadline));
                }
            }
            if last_read >= began + limits.total {
                return Poll::Ready(());
            }
            if discarded >= MAX_DISCARD_BYTES_PER_POLL {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await;
    lingering.set(lingering.get() - 1);
}

/// Ends our direction, or leaves `ended` false if that must wait for the client; false if the connection is gone.
fn try_shutdown_write(client: &ClientConnection, ended: &mut bool) -> bool {
    let result = client.stream.shutdown_write();
    *ended = result.is_ok();
    result.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |()| true)
}

/// The status that [`refuse`] answers with.
pub(super) fn overload_status(snapshot: &Snapshot) -> u16 {
    reply::status_of(Reason::Overload, &snapshot.config.errors)
}

/// Answers a connection that is not served with an error, such as 503 when it is over a limit, and closes it; as cheap as
/// an answer can be.
pub async fn refuse(worker: Rc<Worker>, client: ClientConnection, reason: Reason) {
    let generation = worker.generation();
    let mut out = Vec::with_capacity(512);
    reply::encode_refusal(&worker, &generation, reason, &mut out);
    drop(generation);
    write_and_close(&worker, client, &out).await;
}

/// Closes a connection with a few last bytes, so that the client gets them. What does not fit into an empty send buffer at
/// once is not worth waiting for.
pub(super) async fn write_and_close(worker: &Worker, client: ClientConnection, bytes: &[u8]) {
    if client.stream.try_write(bytes).is_ok() {
        Box::pin(linger(&worker.lingering, client, LINGER_AFTER_GOAWAY)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        pin::pin,
        task::{Context, Waker},
    };

    use tokio::io::AsyncWriteExt as _;

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
        // The runtime takes a new stream for readable until a read has shown the contrary.
        assert!(client.stream.try_read(&mut [0]).is_err());
        assert!(!client.wait_for_request(None).await, "nothing is there");
        peer.write_all(b"GET").unwrap();
        let mut wait = pin!(client.wait_for_request(None));
        let poll = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            poll.is_pending(),
            "whoever went on without the event would ask for ever"
        );
        assert!(wait.await);
    }

    /// A client whose connection is being closed while it sends a byte in each of `pauses`; says how long that took.
    async fn lingers(pauses: impl Iterator<Item = Duration>, limits: LingerLimits) -> Duration {
        let (mut peer, stream) = fixture::pair().await;
        let bind = Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()));
        let entry = Rc::new(ClientConnections::default()).enter(Rc::clone(&bind));
        let client = ClientConnection::new(stream, None, bind, entry, None);
        let (lingering, began) = (Cell::new(0), clock::now());
        let sends = async {
            for pause in pauses {
                tokio::time::sleep(pause).await;
                if peer.write_all(b"a").await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = linger(&lingering, client, limits) => {}
            () = sends => {}
        }
        assert_eq!(lingering.get(), 0);
        clock::now() - began
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_on_sending_is_waited_for_and_one_that_never_stops_is_not() {
        let seconds = Duration::from_secs;
        let limits = LINGER_AFTER_RESPONSE;
        let honest = std::iter::repeat_n(seconds(4), 12);
        let took = lingers(honest, limits).await;
        assert!(took >= seconds(48 + 5) && took < seconds(55), "{took:?}");
        for pause in [seconds(4), Duration::from_millis(1)] {
            let took = lingers(std::iter::repeat(pause), limits).await;
            assert!(took >= limits.total && took < seconds(62), "{took:?}");
        }
        let took = lingers(std::iter::empty(), limits).await;
        assert!(took >= limits.idle && took < seconds(6), "{took:?}");
    }

    /// Bytes of a connection's task: what an idle one costs beside its stream and what the runtime keeps.
    fn size_of_future<F: Future>(_: fn(Rc<Worker>, ClientConnection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_future(serve);
        assert!(size <= 512, "{size} bytes");
    }
}
