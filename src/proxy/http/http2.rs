//! One HTTP/2 connection of a client, with one exchange for each of its streams.
//!
//! Drives the frames, and sends GOAWAY on idle timeout, drain or stream limit. Must not know what a
//! request is, nor what becomes of it.

use std::{
    future::poll_fn,
    net::IpAddr,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{
    buffers::ExchangeBuffers,
    client_side::{ClientSide, H2ClientFacts, H2ClientSide},
    connection::ClientConnection,
    grpc,
    linger::{LINGER_AFTER_GOAWAY, LINGER_AFTER_RESPONSE, linger},
    outcome::AfterExchange,
    read, run,
    stream_tasks::StreamTasks,
};
use crate::{
    base::{clock, socket_key::SocketKey},
    config::model::ListenerTimeoutsConfig,
    h2::{
        FIELD_TABLE_IDLE, client::IncomingRequest, connection::Connection, recycle_request,
        stream::H2Stream,
    },
    http2::frame::ErrorCode,
    net::{
        activity::ActivityTracker,
        proxy_protocol::{ConnectionEnds, ProxyHeader},
    },
    proxy::{connections::ConnectionHandle, timer::Timer, worker::Worker},
};

/// Time for a client with open streams to see our first GOAWAY, a round trip; streams that it opens
/// later are refused.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// Time for a client to read the last frames of a connection that is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// Rounds of exchanges per poll, so that one busy connection does not starve the other tasks of the
/// worker.
const MAX_ROUNDS_PER_POLL: usize = 16;

/// Event on a connection.
enum DriverEvent {
    /// The client opened a stream.
    Asked(IncomingRequest),
    /// The connection was told to close.
    Close,
    /// The connection was idle for too long, or did not end in time.
    TimedOut,
    /// The connection is over.
    Ended,
}

/// Serves the connection of `client` until it ends; `read` are the bytes read from it already.
pub(super) async fn serve(worker: Rc<Worker>, mut client: ClientConnection, read: Vec<u8>) {
    let generation = worker.generation();
    let Some((_, listener)) = client.listener_in(&generation) else {
        return;
    };
    // The limits of the connection are those of the generation that it began with.
    let limits = read::limits(listener);
    let most = listener.config.http.h2_max_streams;
    let timeouts = listener.config.timeouts.clone();
    drop(generation);
    let ClientConnection {
        side,
        peer,
        proxy_header,
        bind,
        entry,
        timer,
        first_request_deadline,
        ..
    } = client;
    let ClientSide::H1(stream) = side else {
        debug_assert!(false, "a stream carries no connection");
        return;
    };
    let facts = H2ClientFacts {
        negotiated: stream.tls().map(|tls| Box::new(tls.negotiated().clone())),
        ends: ConnectionEnds::of(&stream),
    };
    let mut driver = H2ClientDriver {
        worker: &worker,
        connection: Connection::of_client(stream, &read, limits, most),
        facts: Rc::new(facts),
        entry,
        bind,
        peer,
        proxy_header,
        timer,
        timeouts,
        first_request_deadline,
        idle: None,
        written: 0,
        closing: false,
        is_over: false,
        tasks: None,
        serve_stream,
        goaway_deadline: None,
    };
    // Freed before the wait: the task of a connection lives long.
    drop(read);
    poll_fn(|cx| driver.poll_all(cx)).await;
    Box::pin(driver.end()).await;
}

/// The driver of one connection.
struct H2ClientDriver<'a, F> {
    worker: &'a Rc<Worker>,
    connection: Rc<Connection>,
    facts: Rc<H2ClientFacts>,
    entry: ConnectionHandle,
    bind: Rc<SocketKey>,
    peer: Option<IpAddr>,
    proxy_header: Option<Box<ProxyHeader>>,
    timer: Timer,
    timeouts: ListenerTimeoutsConfig,
    /// Deadline for the first request, until it was received.
    first_request_deadline: Option<Instant>,
    /// Progress since the end of the last request: the client may still read its response.
    idle: Option<ActivityTracker>,
    /// Bytes written at the last check of that.
    written: u64,
    /// GOAWAY was sent.
    closing: bool,
    /// The connection has ended, but maybe not all of its exchanges.
    is_over: bool,
    /// `None` for a connection without streams.
    tasks: Option<Box<StreamTasks<F>>>,
    serve_stream: fn(Rc<Worker>, ClientConnection, Box<ExchangeBuffers>) -> F,
    /// End of the time for the client to see that.
    goaway_deadline: Option<Instant>,
}

impl<F: Future<Output = ()> + 'static> H2ClientDriver<'_, F> {
    /// Ready when the connection is over, and its exchanges as well.
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(tasks) = &self.tasks {
            tasks.begin_poll();
        }
        for _ in 0..MAX_ROUNDS_PER_POLL {
            while !self.is_over
                && let Poll::Ready(event) = self.poll(cx)
            {
                self.on_event(event);
            }
            // What they send is written at the next look at the connection.
            self.connection.expect_poll();
            let has_polled = self
                .tasks
                .as_mut()
                .is_some_and(|tasks| tasks.poll_round(cx));
            if !has_polled {
                self.connection.listen(cx);
                return if self.is_over && self.has_no_tasks() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn has_no_tasks(&self) -> bool {
        self.tasks.as_ref().is_none_or(|tasks| tasks.is_empty())
    }

    fn on_event(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::Asked(asked) => self.begin(asked),
            // The client has had its round trip: streams from now on are refused.
            DriverEvent::TimedOut if self.goaway_deadline.take().is_some() => {
                self.connection.begin_shutdown();
            }
            DriverEvent::TimedOut if self.closing => self.is_over = true,
            DriverEvent::Close | DriverEvent::TimedOut => self.close(),
            DriverEvent::Ended => self.is_over = true,
        }
    }

    /// Starts a graceful shutdown in two steps (RFC 9113 section 6.8): a GOAWAY that still allows
    /// streams on their way, and a final one a round trip later.
    fn close(&mut self) {
        self.closing = true;
        self.idle = None;
        self.goaway_deadline = Some(clock::now() + GOAWAY_GRACE);
        self.connection.begin_shutdown();
    }

    /// Ready at the next event. Frames go first, so that a request that has arrived is served
    /// although the connection is being told to close.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DriverEvent> {
        match self.connection.poll(cx) {
            Poll::Ready(Some(asked)) => return Poll::Ready(DriverEvent::Asked(asked)),
            Poll::Ready(None) => return Poll::Ready(DriverEvent::Ended),
            Poll::Pending => {}
        }
        let open = self.connection.open_streams();
        // Only a connection without streams counts as idle, and may be shed for a new one.
        let told = if open == 0 {
            self.entry.wait(cx)
        } else {
            self.entry.busy();
            self.entry.close_signal.listen(cx)
        };
        // A failed connection ends as soon as the client has read the frames written.
        self.closing |= self.connection.close_reason().is_some();
        if told && !self.closing {
            return Poll::Ready(DriverEvent::Close);
        }
        if open > 0 || self.first_request_deadline.is_some() && !self.closing {
            self.idle = None;
            let deadline = if open > 0 {
                self.goaway_deadline
            } else {
                self.first_request_deadline
            };
            return self
                .timer
                .poll(cx, deadline)
                .map(|()| DriverEvent::TimedOut);
        }
        self.goaway_deadline = None;
        self.poll_idle(cx)
    }

    /// Ready when the connection has had no request for too long, and its client reads nothing of
    /// the last response any more.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<DriverEvent> {
        if self.has_no_tasks()
            && let Some(tasks) = self.tasks.take()
        {
            tasks.give_back();
        }
        let is_read = self.connection.has_unwritten() && self.connection.close_reason().is_none();
        let written = self.connection.written();
        if std::mem::replace(&mut self.written, written) != written && is_read {
            self.idle = None;
        }
        let ListenerTimeoutsConfig {
            body_idle,
            keepalive,
            ..
        } = self.timeouts;
        // A client that reads a large response has the body's timeout, but not less than an idle
        // one.
        let time = match (is_read, self.closing) {
            (true, true) => body_idle,
            (true, false) => body_idle.and_then(|idle| Some(idle.max(keepalive?))),
            (false, true) => Some(CLOSE_TIMEOUT),
            (false, false) => keepalive,
        };
        let idle = self.idle.get_or_insert_with(|| {
            let now = clock::now();
            self.connection.pause_field_table(now);
            ActivityTracker::new(now)
        });
        let passed = if is_read {
            let unacked = || [self.connection.unacked(), None];
            self.timer
                .poll_idle(cx, idle, time, None, unacked)
                .map(drop)
        } else {
            let end = time.map(|time| idle.last + time);
            let release = idle.last + FIELD_TABLE_IDLE;
            if self.connection.has_field_table() && end.is_none_or(|end| release < end) {
                ready!(self.timer.poll(cx, Some(release)));
                self.connection.release_field_table();
            }
            self.timer.poll(cx, end)
        };
        passed.map(|()| DriverEvent::TimedOut)
    }

    /// Begins the exchange of one stream.
    fn begin(&mut self, mut asked: IncomingRequest) {
        self.first_request_deadline = None;
        if let Some(refusal) = asked.refusal {
            tracing::debug!(target: "http", client = ?self.peer, detail = refusal.detail, "request refused");
        }
        let side = H2ClientSide {
            stream: H2Stream::of_request(&self.connection, &asked),
            facts: Rc::clone(&self.facts),
            refusal: asked.refusal.map(|refusal| refusal.fault),
        };
        let mut buffers = self.worker.take_buffers();
        std::mem::swap(&mut buffers.request, &mut asked.head);
        recycle_request(asked.head);
        if let Some(deadline) = grpc::timeout(&buffers.request) {
            side.stream.allow_reset_after(deadline);
        }
        if side.is_malformed() {
            // RFC 9113 section 8.1.1: the response is sent, and the stream ends as an error.
            side.stream.end_with_reset(ErrorCode::PROTOCOL_ERROR);
        }
        let (bind, entry) = (Rc::clone(&self.bind), self.entry.child());
        let mut client = ClientConnection::new(ClientSide::H2(side), self.peer, bind, entry, None);
        client.proxy_header.clone_from(&self.proxy_header);
        client.timer = std::mem::take(&mut buffers.timer);
        let exchange = (self.serve_stream)(Rc::clone(self.worker), client, buffers);
        self.tasks
            .get_or_insert_with(StreamTasks::take)
            .spawn(exchange);
    }

    /// Closes the transport. Lingers, as the last frames, such as a GOAWAY, must not be lost to a
    /// reset.
    async fn end(self) {
        if let Some(ended) = self.connection.close_reason() {
            tracing::debug!(target: "http", client = ?self.peer, %ended, "http/2 connection over");
        }
        let Some(stream) = self.connection.take_stream() else {
            return;
        };
        let client = ClientConnection {
            side: stream.into(),
            peer: self.peer,
            proxy_header: None,
            bind: self.bind,
            entry: self.entry,
            timer: self.timer,
            listener: None,
            first_request_deadline: None,
            pipelined_requests: 0,
            is_unused: false,
        };
        linger(&self.worker.lingering, client, LINGER_AFTER_GOAWAY).await;
    }
}

/// Runs the exchange of one stream.
async fn serve_stream(
    worker: Rc<Worker>,
    mut client: ClientConnection,
    mut buffers: Box<ExchangeBuffers>,
) {
    // Opened and reset at once: nothing has begun, so there is nothing to record.
    if client.is_disconnected().await {
        return worker.give_back_buffers(buffers);
    }
    let next = run::run(&worker, &mut client, &mut buffers).await;
    buffers.timer = std::mem::take(&mut client.timer);
    worker.give_back_buffers(buffers);
    // Many clients treat a reset while they send as a failure, even after a whole response. A
    // malformed request ends in a reset in any case.
    if next == AfterExchange::Linger && !client.side.is_malformed() {
        Box::pin(linger(&worker.lingering, client, LINGER_AFTER_RESPONSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_stream<F: Future>(
        _: fn(Rc<Worker>, ClientConnection, Box<ExchangeBuffers>) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_exchange_of_a_stream_is_small() {
        // It is moved for every request, and kept for each stream at a time.
        let size = size_of_stream(serve_stream);
        assert!(size <= 3584, "{size} bytes");
    }

    fn size_of_future<F: Future>(_: fn(Rc<Worker>, ClientConnection, Vec<u8>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_future(serve) + size_of::<Connection>();
        assert!(size <= 2 << 10, "{size} bytes");
    }
}
