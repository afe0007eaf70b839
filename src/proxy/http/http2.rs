//! One HTTP/2 connection of a client: each of its streams is served as a connection of its own with one exchange.
//!
//! Drives the frames, says GOAWAY when the connection has been idle, is told to close or asks too much. What a request is and
//! what becomes of it is not known here.

use std::{
    future::poll_fn,
    net::IpAddr,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::{RecvStream, server};
use hyper::http::Request;
use tokio::task::spawn_local;

use super::{Client, LINGER_TIME, Next, attempt, exchange, linger};
use crate::{
    base::{address::BindAddress, clock},
    config::model::{HttpLimits, ListenerTimeouts},
    http1::request::Limits,
    net::{
        h2::{
            incoming::{Carrier, Incoming},
            watch::{Account, Watched},
        },
        proxy_protocol::Header,
        stream::Stream,
    },
    proxy::{connections::Entry, timer::Timer, worker::Worker},
};

/// Bytes of a request body that a stream may hold unread.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a response that a stream may hold unsent.
const SEND_BUFFER: usize = 64 << 10;
/// Streams reset by the client before they were looked at.
const RESET_EARLY: usize = 50;
/// Streams that the frames of the client made us reset.
const RESET_BY_US: usize = 200;
/// Streams that are remembered after our reset, for frames that are on their way.
const REMEMBERED: usize = 20;

/// A request, and where its response goes.
type Asked = (Request<RecvStream>, server::SendResponse<Bytes>);

/// What happens on a connection.
enum Event {
    Asked(Box<Asked>),
    /// Told to close.
    Close,
    /// Nothing came for too long, or the end was not reached in time.
    Late,
    /// The client has made more work than it asked for.
    Flood,
    /// The connection is over.
    Over,
}

/// Serves the connection of `client`, of which `read` has been read already, until it ends.
pub(super) async fn serve(worker: Rc<Worker>, mut client: Client, read: Vec<u8>) {
    let generation = worker.generation();
    let listener = client.listener_of(&generation);
    let Some(listener) = listener.and_then(|index| generation.listeners.get(index)) else {
        return;
    };
    let http = listener.config.http.clone();
    let timeouts = listener.config.timeouts.clone();
    drop(generation);
    let Client {
        stream,
        peer,
        introduced,
        bind,
        entry,
        mut timer,
        first,
        ..
    } = client;
    let carrier = Carrier::new(&stream);
    let (watched, account) = Watched::new(stream, read);
    let greeted = Box::pin(greet(watched, &http, &mut timer, first)).await;
    let Some(connection) = greeted else { return };
    let mut driver = Driver {
        worker: &worker,
        connection,
        carrier,
        account,
        entry,
        bind,
        peer,
        introduced,
        timer,
        http,
        timeouts,
        first,
        idle: None,
        written: 0,
        closing: false,
        calmed: false,
    };
    poll_fn(|cx| driver.poll_all(cx)).await;
    Box::pin(driver.end()).await;
}

/// Sends our settings and reads the preface; `None` if the client does not get that far.
async fn greet(
    watched: Watched,
    http: &HttpLimits,
    timer: &mut Timer,
    deadline: Option<Instant>,
) -> Option<Box<server::Connection<Watched, Bytes>>> {
    let mut handshake = Box::pin(
        server::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(http.h2_max_streams as u32)
            // Twice what is allowed, so that we give the answer to what is too large, and log it.
            .max_header_list_size(2 * http.max_header_size as u32)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(REMEMBERED)
            .max_pending_accept_reset_streams(RESET_EARLY)
            .max_local_error_reset_streams(Some(RESET_BY_US))
            .enable_connect_protocol()
            .handshake(watched),
    );
    poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done.ok().map(Box::new)),
        Poll::Pending => timer.poll(cx, deadline).map(|()| None),
    })
    .await
}

struct Driver<'a> {
    worker: &'a Rc<Worker>,
    connection: Box<server::Connection<Watched, Bytes>>,
    carrier: Rc<Carrier>,
    account: Rc<Account>,
    entry: Entry,
    bind: Rc<BindAddress>,
    peer: Option<IpAddr>,
    introduced: Option<Box<Header>>,
    timer: Timer,
    http: HttpLimits,
    timeouts: ListenerTimeouts,
    /// By when the first request must be there, until it is.
    first: Option<Instant>,
    /// Since when there has been no request.
    idle: Option<Instant>,
    /// Bytes written when that was last looked at.
    written: u64,
    /// GOAWAY was said.
    closing: bool,
    /// It was said for the work that the client makes.
    calmed: bool,
}

impl Driver<'_> {
    /// Ready when the connection is over.
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.poll(cx)) {
                Event::Asked(asked) => self.begin(*asked),
                Event::Late if self.closing => return Poll::Ready(()),
                Event::Close | Event::Late => self.close(),
                Event::Flood => {
                    tracing::debug!(target: "http", client = ?self.peer, "http/2 flood");
                    self.connection
                        .abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    (self.closing, self.calmed) = (true, true);
                }
                Event::Over => return Poll::Ready(()),
            }
        }
    }

    fn close(&mut self) {
        self.closing = true;
        self.idle = None;
        self.connection.graceful_shutdown();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let open = self.carrier.poll_open(cx);
        let told = if open == 0 {
            self.entry.wait(cx)
        } else {
            self.entry.busy();
            self.entry.control.listen(cx)
        };
        // A stream that was reset can still have its task: no more of these than of streams.
        let polled = if open < self.http.h2_max_streams {
            self.connection.poll_accept(cx)
        } else {
            let polled = self.connection.poll_closed(cx);
            polled.map(|over| over.err().map(Err))
        };
        match polled {
            Poll::Ready(Some(Ok(asked))) => return Poll::Ready(Event::Asked(Box::new(asked))),
            Poll::Ready(_) => return Poll::Ready(Event::Over),
            Poll::Pending => {}
        }
        if self.account.is_spent() && !self.calmed {
            return Poll::Ready(Event::Flood);
        }
        if told && !self.closing {
            return Poll::Ready(Event::Close);
        }
        let deadline = self.deadline(open);
        self.timer.poll(cx, deadline).map(|()| Event::Late)
    }

    /// When the connection has been without a request for too long.
    fn deadline(&mut self, open: usize) -> Option<Instant> {
        if open > 0 {
            self.idle = None;
            return None;
        }
        let moved = self.account.written() != self.written;
        self.written = self.account.written();
        if self.first.is_some() && !self.closing {
            return self.first;
        }
        // Somebody may still be reading the last response.
        if moved && self.connection.has_streams() {
            self.idle = None;
        }
        let time = if self.connection.has_streams() {
            self.timeouts.body_idle
        } else if self.closing {
            Some(LINGER_TIME)
        } else {
            self.timeouts.keepalive
        };
        let since = *self.idle.get_or_insert_with(clock::now);
        time.map(|time| since + time)
    }

    /// Serves one stream in a task of its own.
    fn begin(&mut self, (request, respond): Asked) {
        self.first = None;
        let limits = Limits {
            fields: self.http.max_headers,
            bytes: self.http.max_header_size,
        };
        let nonce = {
            let mut random = self.worker.random.borrow_mut();
            (u128::from(random.bits()) << 64 | u128::from(random.bits())).to_be_bytes()
        };
        let carrier = Rc::clone(&self.carrier);
        let incoming = Incoming::new(carrier, request, respond, limits, nonce);
        let (bind, entry) = (Rc::clone(&self.bind), self.entry.part());
        let mut client = Client::new(Stream::from(incoming), self.peer, bind, entry, None);
        client.introduced.clone_from(&self.introduced);
        drop(spawn_local(one(Rc::clone(self.worker), client)));
    }

    /// Closes what the connection was on: what was said last, such as a GOAWAY, must not be lost to a reset.
    async fn end(self) {
        drop(self.connection);
        let Some(stream) = self.account.take_stream() else {
            return;
        };
        let client = Client {
            stream,
            peer: self.peer,
            introduced: None,
            bind: self.bind,
            entry: self.entry,
            timer: self.timer,
            listener: None,
            first: None,
            row: 0,
            is_new: false,
        };
        linger(self.worker, client).await;
    }
}

/// Runs the exchange of one stream.
async fn one(worker: Rc<Worker>, mut client: Client) {
    // Asked and reset at once: nothing has begun, so there is nothing to be recorded.
    if attempt::is_gone(&client.stream).await {
        return;
    }
    let mut scratch = worker.take_scratch();
    let next = Box::pin(exchange::run(&worker, &mut client, &mut scratch)).await;
    worker.give_scratch(scratch);
    match next {
        Next::Reset => {}
        // Many clients take a reset while they send for a failure, whatever they have been answered.
        Next::Linger => Box::pin(linger(&worker, client)).await,
        _ => client.end(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_stream<F: Future>(_: fn(Rc<Worker>, Client) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_stream_is_small() {
        // It is made and moved for every request.
        let size = size_of_stream(one);
        assert!(size <= 700, "{size} bytes");
    }

    fn size_of_future<F: Future>(_: fn(Rc<Worker>, Client, Vec<u8>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        // What the frames' buffers cost beside it is the h2 crate's.
        let size = size_of_future(serve) + size_of::<server::Connection<Watched, Bytes>>();
        assert!(size <= 3 << 10, "{size} bytes");
    }
}
