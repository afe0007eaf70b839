//! One HTTP exchange, top to bottom: read the head → route → forward or answer → record.
//!
//! How a head is read is in `read.rs`, one try on one backend in `attempt.rs`, our own answers in `reply.rs`, what is
//! recorded in `facts.rs`.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Poll, ready},
    time::Instant,
};

use tokio::io::AsyncWrite;

use super::{
    AfterExchange, ClientConnection, ExchangeBuffers, MAX_PIPELINED, attempt,
    client_address::{ClientAddress, is_allowed},
    facts::{ActiveRequest, ExchangeRecord},
    forward::{self, NextHop, RequestChanges, RequestOrigin},
    grpc,
    pace::MinRate,
    pump::Pump,
    read::{self, HeadReadOutcome},
    reply::LocalReply,
};
use crate::{
    base::clock,
    config::model::{
        BackendProtocol, ListenerTimeoutsConfig, PoolTimeoutsConfig, RetriesConfig, RouteAction,
        RouteConfig, TimeoutOverrides,
    },
    http1::{
        self,
        body::{BodyDecoder, BodyStep},
        request::{self, RequestFraming},
    },
    net::activity::ActivityTracker,
    pool::Pool,
    proxy::worker::{Generation, Worker},
    reason::Reason,
    route,
    snapshot::{Listener, Snapshot},
    telemetry::metrics::ListenerSlot,
};

/// Where an exchange takes place.
#[derive(Clone, Copy)]
pub(super) struct ExchangeContext<'a> {
    pub worker: &'a Rc<Worker>,
    pub snapshot: &'a Snapshot,
    pub listener: &'a Listener,
    pub listener_index: usize,
}

impl<'a> ExchangeContext<'a> {
    /// The listener's counters of this thread.
    pub(super) fn counters(&self) -> &'a ListenerSlot {
        self.listener.state.metrics.mine()
    }
}

/// Where a request on the connection of `client` comes from, for the backend.
fn origin<'o>(
    context: ExchangeContext<'o>,
    client: &'o ClientConnection,
    from: ClientAddress,
    head: &request::RequestHead,
) -> RequestOrigin<'o> {
    let tls = client.stream.negotiated_tls();
    let subject = context.listener.config.tls.as_ref().and_then(|rules| {
        let own = tls.and_then(|tls| tls.client_subject.as_deref());
        Some((rules.client_subject.as_deref()?, own.unwrap_or_default()))
    });
    let trusted = &context.snapshot.config.trusted_proxies;
    let is_hostless = head.host.is_empty();
    let ends = is_hostless.then(|| client.ends()).flatten();
    RequestOrigin {
        peer: client.peer,
        trusted: from.trusted,
        client: from.client,
        is_unlisted: from.is_unlisted,
        client_header: trusted.client_header.as_deref(),
        port: client.local_port(),
        local: ends.map(|ends| ends.destination),
        is_secure: tls.is_some(),
        is_h2: client.stream.h2_request().is_some(),
        subject,
    }
}

/// The rules for forwarding: the pool's, with the route's overrides.
pub(super) struct ForwardSettings<'a> {
    pub timeouts: PoolTimeoutsConfig,
    pub retries: Option<&'a RetriesConfig>,
    pub route: Option<&'a RouteConfig>,
    /// When `timeouts.total` ends, or the time that the client of a gRPC call gives it.
    pub end: Option<Instant>,
    /// The target that the route has rewritten.
    target: Option<Vec<u8>>,
}

/// One exchange. Whatever happens to it, dropping included, it is recorded once.
pub(super) struct Exchange<'a> {
    pub context: ExchangeContext<'a>,
    pub client: &'a mut ClientConnection,
    pub head: &'a mut request::RequestHead,
    pub request_id: &'a mut String,
    pub record: ExchangeRecord,
    /// Whom the request comes from.
    pub from: ClientAddress,
    /// How fast the client sends its body.
    pub min_rate: MinRate,
    /// Where in the head's buffer the next request begins, if the body has been read to its end.
    pub(super) next_request_at: Option<usize>,
    /// The client's own wish, in a request that was read whole.
    pub(super) client_asked_to_close: bool,
    /// So many requests of one read were answered that what is behind this one is dropped.
    pipeline_limit_reached: bool,
}

/// Runs one exchange. Afterwards the head's buffer in `scratch` holds what was read beyond this request.
pub(super) async fn run(
    worker: &Rc<Worker>,
    client: &mut ClientConnection,
    buffers: &mut ExchangeBuffers,
) -> AfterExchange {
    let began = clock::now();
    let generation = worker.generation();
    let Some((_, listener)) = listener_of(client, &generation) else {
        return AfterExchange::Close;
    };
    let reading = read::head(client, &mut buffers.head, listener, began).await;
    match reading {
        HeadReadOutcome::Nothing => return AfterExchange::Close,
        // The connection goes on waiting, with nothing of an exchange in its hands.
        HeadReadOutcome::NotYet => return AfterExchange::KeepAlive,
        HeadReadOutcome::Http2 => return AfterExchange::Http2,
        _ => (client.first_request_deadline, client.is_unused) = (None, false),
    }
    let generation = newest(worker, client, generation);
    let Some((listener_index, listener)) = listener_of(client, &generation) else {
        return AfterExchange::Close;
    };
    let ExchangeBuffers {
        head, request_id, ..
    } = buffers;
    let context = ExchangeContext {
        worker,
        snapshot: &generation,
        listener,
        listener_index,
    };
    let mut exchange = Exchange::new(context, client, head, request_id, began);
    exchange.identify();
    let mut io = Io {
        response: &mut buffers.response,
        response_bytes: &mut buffers.response_bytes,
        out: &mut buffers.out,
        request_out: &mut buffers.request_out,
        upload_out: &mut buffers.upload_out,
        upload_bytes: &mut buffers.upload_bytes,
    };
    let next = match reading {
        HeadReadOutcome::Refused(reason) => {
            exchange.head.keep_alive = false;
            exchange.fail(reason, &mut io).await
        }
        _ => exchange.answer(&mut io).await,
    };
    let rest = exchange.next_request_at;
    exchange.record();
    drop(exchange);
    keep_unread(buffers, rest);
    next
}

/// How backends of `pool` are spoken with.
fn hop(pool: &Pool) -> NextHop {
    match pool.config.protocol {
        BackendProtocol::H2 | BackendProtocol::H2c => NextHop::H2,
        BackendProtocol::Http1 if pool.config.keepalive.idle_per_backend == 0 => NextHop::Close,
        BackendProtocol::Http1 => NextHop::KeepAlive,
    }
}

/// The listener that serves `client` in a generation, with its index.
fn listener_of<'s>(
    client: &mut ClientConnection,
    snapshot: &'s Snapshot,
) -> Option<(usize, &'s Listener)> {
    let index = client.listener_of(snapshot)?;
    Some((index, snapshot.listeners.get(index)?))
}

/// The generation in force, for a request whose head is whole: a reload may have replaced `generation` while it came. Where the
/// listener has left meanwhile, the request is served by the rules that it began with.
fn newest(worker: &Worker, client: &mut ClientConnection, generation: Generation) -> Generation {
    let newest = worker.generation();
    if newest.generation == generation.generation {
        return generation;
    }
    let listener = listener_of(client, &newest);
    let serves = |(_, listener): (usize, &Listener)| listener.service.has_requests();
    if listener.is_some_and(serves) {
        newest
    } else {
        generation
    }
}

/// What was read beyond this request is the beginning of the next.
fn keep_unread(buffers: &mut ExchangeBuffers, rest: Option<usize>) {
    let bytes = &mut buffers.head.bytes;
    match rest {
        Some(rest) if rest < bytes.len() => drop(bytes.drain(..rest)),
        _ => bytes.clear(),
    }
    debug_assert!(
        buffers.upload_bytes.is_empty() || rest.is_none(),
        "the next request begins in one place"
    );
    bytes.append(&mut buffers.upload_bytes);
}

/// The buffers of an exchange besides the request head.
pub(super) struct Io<'a> {
    pub response: &'a mut http1::response::ResponseHead,
    pub response_bytes: &'a mut Vec<u8>,
    pub out: &'a mut Vec<u8>,
    pub request_out: &'a mut Vec<u8>,
    pub upload_out: &'a mut Vec<u8>,
    pub upload_bytes: &'a mut Vec<u8>,
}

impl<'a> Exchange<'a> {
    fn new(
        context: ExchangeContext<'a>,
        client: &'a mut ClientConnection,
        head: &'a mut request::RequestHead,
        request_id: &'a mut String,
        began: Instant,
    ) -> Self {
        Self {
            context,
            client,
            head,
            request_id,
            record: ExchangeRecord::new(began),
            from: ClientAddress::default(),
            min_rate: MinRate::default(),
            next_request_at: None,
            client_asked_to_close: false,
            pipeline_limit_reached: false,
        }
    }

    /// We want no further request on this connection, whatever the client wishes.
    pub(super) fn must_close(&self) -> bool {
        self.pipeline_limit_reached || self.client.entry.close_signal.should_close()
    }

    /// Finds whom the request comes from, and gives it its id, one that is refused as well.
    fn identify(&mut self) {
        let ExchangeContext {
            snapshot, worker, ..
        } = self.context;
        let trusted = &snapshot.config.trusted_proxies;
        self.from = ClientAddress::of(self.head, self.client.peer, trusted);
        forward::request_id(
            self.request_id,
            self.head,
            &snapshot.config.forwarded,
            self.from.trusted,
            &mut worker.random.borrow_mut(),
        );
    }

    /// The request is whole: find out what is to be done, and do it.
    async fn answer(&mut self, io: &mut Io<'_>) -> AfterExchange {
        let ExchangeContext {
            snapshot,
            listener,
            listener_index,
            ..
        } = self.context;
        self.next_request_at = self.end_of_body();
        self.client_asked_to_close = !self.head.keep_alive && self.next_request_at.is_some();
        let is_more = self
            .next_request_at
            .is_some_and(|rest| rest < self.head.bytes.len());
        self.pipeline_limit_reached = self.client.pipelined_requests >= MAX_PIPELINED && is_more;
        if !is_allowed(
            self.from.client,
            &listener.config.allow,
            &listener.config.deny,
        ) {
            return self.fail(Reason::RequestDenied, io).await;
        }
        if self.is_misdirected() {
            return self.fail(Reason::MisdirectedRequest, io).await;
        }
        let head = &*self.head;
        let has_header = |name: &str, test: &dyn Fn(&[u8]) -> bool| {
            head.fields.sent_values(name, &head.bytes).any(test)
        };
        let found = snapshot.router.find(
            listener_index,
            head.text(head.host),
            head.text(head.path),
            head.text(head.method),
            &has_header,
        );
        let route = match found {
            Ok(route) => route.and_then(|index| Some((index, snapshot.config.routes.get(index)?))),
            Err(reason) => {
                // Refused like a head that is malformed: nothing after it is run.
                self.head.keep_alive = false;
                return self.fail(reason, io).await;
            }
        };
        self.record.route = route.map(|(index, _)| index);
        if self.is_over_body_limit() {
            return self.fail(Reason::RequestBodySize, io).await;
        }
        if route.is_some_and(|(_, route)| !is_allowed(self.from.client, &route.allow, &[])) {
            return self.fail(Reason::RequestDenied, io).await;
        }
        if let Err(wait) = self.take_rate(self.record.route) {
            return self.fail_for(wait, io).await;
        }
        let Some((route_index, route)) = route else {
            return match (&listener.config.redirect, listener.config.pool) {
                (Some(redirect), _) => self.redirect(redirect, io).await,
                (None, Some(pool)) => self.forward(pool, None, None, io).await,
                (None, None) => self.fail(Reason::NoRoute, io).await,
            };
        };
        let pool = match &route.action {
            RouteAction::Pool(pool) => *pool,
            RouteAction::Split(shares) => {
                route::pick_pool(shares, &mut self.context.worker.random.borrow_mut())
            }
            RouteAction::Redirect(redirect) => return self.redirect(redirect, io).await,
            RouteAction::Respond(respond) => {
                return self.reply(&LocalReply::fixed(respond), io).await;
            }
        };
        let target = self.head.text(self.head.target);
        match snapshot.router.rewrite(route_index, target) {
            Ok(target) => self.forward(pool, Some(route), target, io).await,
            Err(reason) => self.fail(reason, io).await,
        }
    }

    /// The client was shown another certificate than that of the host it asks for, and `tls.same_host` does not allow that
    /// (RFC 9110 section 15.5.20).
    fn is_misdirected(&self) -> bool {
        let rules = &self.context.listener.config.tls;
        if rules.as_ref().is_none_or(|rules| !rules.same_host) {
            return false;
        }
        let agreed = self.client.stream.negotiated_tls();
        let (Some(tls), Some(agreed)) = (&self.context.listener.tls, agreed) else {
            return false;
        };
        let host = self.head.text(self.head.host);
        !host.is_empty() && !tls.may_serve(host, agreed.server_name.as_deref())
    }

    fn is_over_body_limit(&self) -> bool {
        let limit = self
            .context
            .listener
            .config
            .limits
            .request_body
            .unwrap_or(u64::MAX);
        self.head.body_length().is_some_and(|length| length > limit)
    }

    /// Where the body ends in what has been read, if it does.
    fn end_of_body(&self) -> Option<usize> {
        let mut decoder = self.decoder();
        let mut at = self.head.len;
        loop {
            match decoder.step(self.head.bytes.get(at..)?).ok()? {
                BodyStep::Data(count) | BodyStep::Skip(count) => at += count,
                BodyStep::More => return None,
                BodyStep::End => return Some(at),
            }
        }
    }

    fn decoder(&self) -> BodyDecoder {
        match self.head.framing {
            RequestFraming::None => BodyDecoder::Length(0),
            RequestFraming::Length(length) => BodyDecoder::Length(length),
            RequestFraming::Chunked => BodyDecoder::chunked(read::limits(self.context.listener)),
        }
    }

    /// Sends the request to backends of a pool until one answers, or no further try is allowed.
    async fn forward(
        &mut self,
        pool_index: usize,
        route: Option<&RouteConfig>,
        target: Option<Vec<u8>>,
        io: &mut Io<'_>,
    ) -> AfterExchange {
        let Some(pool) = self.context.snapshot.pools.get(pool_index) else {
            return self.fail(Reason::InternalError, io).await;
        };
        self.record.pool = Some(pool_index);
        let newest = self.newer(pool);
        let pool = newest.as_ref().unwrap_or(pool);
        self.record.newest.clone_from(&newest);
        let active = ActiveRequest::new(&pool.state.metrics);
        let over = route.and_then(|route| route.retries_for(pool_index));
        let mut settings = ForwardSettings::new(pool, route, over, self.record.began);
        // The client of a call gives up earlier than we, or at the same time.
        let given_up = grpc::timeout(self.head).map(|timeout| self.record.began + timeout);
        settings.end = attempt::min_deadline(settings.end, given_up);
        if settings.retries.is_some() {
            pool.state.budget.request();
        }
        settings.target = target;
        let mut upload = self.upload(pool, &settings, io);
        let next = self.try_backends(pool, &settings, &mut upload, io).await;
        let read_all = self.take_back(upload, io);
        drop(active);
        if next == AfterExchange::KeepAlive && !read_all {
            AfterExchange::Linger
        } else {
            next
        }
    }

    /// Gives the buffers of the upload back, and notes where the next request begins; true if this one was read to its
    /// end.
    fn take_back(&mut self, upload: Pump, io: &mut Io<'_>) -> bool {
        // A tunnel has counted its own.
        self.record.bytes_in += upload.body();
        let read_all = upload.has_read_all() || self.next_request_at.is_some();
        if upload.moved().0 > 0 {
            self.client.pipelined_requests = 0;
        }
        let in_upload = self.head.framing != RequestFraming::None && upload.has_read_all();
        let (out, bytes, taken) = upload.into_buffers();
        *io.upload_out = out;
        *io.upload_bytes = bytes;
        if in_upload {
            // The next request begins where the upload stopped reading.
            self.next_request_at = None;
            io.upload_bytes.drain(..taken.min(io.upload_bytes.len()));
        } else {
            io.upload_bytes.clear();
        }
        read_all
    }

    /// Encodes the head of the request again, where `pool` speaks otherwise with its backends than `before`.
    pub(super) fn reencode_request(
        &mut self,
        before: &Pool,
        pool: &Pool,
        settings: &ForwardSettings<'_>,
        out: &mut Vec<u8>,
    ) {
        if hop(before) == hop(pool) {
            return;
        }
        // The first time has struck fields out. What was parsed once is parsed again.
        let (keep_alive, length) = (self.head.keep_alive, self.head.declared_length);
        let parsed = self.head.parse(read::limits(self.context.listener));
        debug_assert!(matches!(parsed, Ok(true)), "the same bytes");
        (self.head.keep_alive, self.head.declared_length) = (keep_alive, length);
        self.encode_request(pool, settings, out);
    }

    /// Encodes the head of the request for a backend of `pool`.
    fn encode_request(&mut self, pool: &Pool, settings: &ForwardSettings<'_>, out: &mut Vec<u8>) {
        let snapshot = self.context.snapshot;
        let origin = origin(self.context, self.client, self.from, self.head);
        let changes = RequestChanges {
            target: settings.target.as_deref(),
            host: settings
                .route
                .and_then(|route| route.rewrite.host.as_deref()),
            edits: settings.route.map(|route| &route.request_headers),
        };
        out.clear();
        forward::request_head(
            out,
            self.head,
            &snapshot.config.forwarded,
            origin,
            self.request_id,
            changes,
            hop(pool),
        );
    }

    /// Whether the body goes to a backend of `pool` in chunks; if not, the length at which a chunked one ends. HTTP/1 has a
    /// length or trailers.
    pub(super) fn upload_framing(&self, pool: &Pool) -> (bool, Option<u64>) {
        let length = self
            .head
            .declared_length
            .filter(|_| hop(pool) != NextHop::H2);
        let is_chunked = self.head.framing == RequestFraming::Chunked && length.is_none();
        (is_chunked, length)
    }

    /// The request as it goes to a backend.
    fn upload(&mut self, pool: &Pool, settings: &ForwardSettings<'_>, io: &mut Io<'_>) -> Pump {
        let listener = self.context.listener;
        self.encode_request(pool, settings, io.request_out);
        let mut out = std::mem::take(io.upload_out);
        out.clear();
        out.extend_from_slice(io.request_out);
        let mut bytes = std::mem::take(io.upload_bytes);
        bytes.clear();
        if self.head.framing == RequestFraming::None {
            return Pump::new(out, bytes, 0, None, false);
        }
        bytes.extend_from_slice(self.head.bytes.get(self.head.len..).unwrap_or_default());
        let (chunked, length) = self.upload_framing(pool);
        let mut upload = Pump::new(out, bytes, 0, Some(self.decoder()), chunked);
        upload.set_framing(chunked, length);
        if self.head.framing == RequestFraming::Chunked {
            let origin = origin(self.context, self.client, self.from, self.head);
            let rules = &self.context.snapshot.config.forwarded;
            upload.forbid_trailers(forward::own_names(rules, origin));
        }
        upload.limit_body(listener.config.limits.request_body.unwrap_or(u64::MAX));
        if settings.retries.is_some() {
            upload.keep_for_replay();
        } else {
            upload.allow_splice();
        }
        upload
    }

    /// An error after forwarding has begun.
    pub(super) async fn fail_forwarding(
        &mut self,
        reason: Reason,
        upload: &Pump,
        io: &mut Io<'_>,
    ) -> AfterExchange {
        if matches!(
            reason,
            Reason::ClientDisconnected | Reason::ClientWriteTimeout
        ) {
            self.record.reason = Some(reason);
            return AfterExchange::Reset;
        }
        if !upload.has_read_all() && self.next_request_at.is_none() {
            self.head.keep_alive = false;
        }
        self.fail(reason, io).await
    }

    /// Name and value of the field with the id of this request.
    pub(super) fn request_id_field(&self) -> (&str, &str) {
        (
            &self.context.snapshot.config.forwarded.request_id,
            self.request_id,
        )
    }
}

impl<'a> ForwardSettings<'a> {
    /// `over` is the route's override of the pool's retries.
    fn new(
        pool: &'a Pool,
        route: Option<&'a RouteConfig>,
        over: Option<&'a Option<RetriesConfig>>,
        began: Instant,
    ) -> Self {
        let own = &pool.config.timeouts;
        let timeouts = match route.map(|route| &route.timeouts) {
            Some(over) if *over != TimeoutOverrides::default() => PoolTimeoutsConfig {
                connect: over.connect.unwrap_or(own.connect),
                response: over.response.unwrap_or(own.response),
                idle: over.idle.unwrap_or(own.idle),
                tcp_idle: over.idle.unwrap_or(own.tcp_idle),
                total: over.total.unwrap_or(own.total),
            },
            _ => own.clone(),
        };
        let retries = over.unwrap_or(&pool.config.retries).as_ref();
        let end = timeouts.total.map(|total| began + total);
        Self {
            timeouts,
            retries,
            route,
            end,
            target: None,
        }
    }

    pub(super) fn is_idempotent(&self, head: &request::RequestHead) -> bool {
        let method = head.text(head.method);
        self.retries.is_some_and(|retries| {
            retries
                .methods
                .iter()
                .any(|known| known.as_bytes() == method)
        })
    }
}

/// Writes all of `bytes`; a client that takes nothing of them for `timeouts.body_idle` is given up.
pub(super) async fn write_all(
    client: &mut ClientConnection,
    bytes: &[u8],
    timeouts: &ListenerTimeoutsConfig,
) -> Result<(), Reason> {
    let ClientConnection { stream, timer, .. } = client;
    let (mut sent, mut noted) = (0, None);
    let mut activity: Option<ActivityTracker> = None;
    poll_fn(|cx| {
        while let Some(rest @ [_, ..]) = bytes.get(sent..) {
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(count @ 1..)) => sent += count,
                Poll::Ready(_) => return Poll::Ready(Err(Reason::ClientDisconnected)),
                Poll::Pending => {
                    if noted.replace(sent) != Some(sent) {
                        activity = None;
                    }
                    let activity =
                        activity.get_or_insert_with(|| ActivityTracker::new(clock::now()));
                    let unacked = || [stream.unacked(), None];
                    ready!(timer.poll_idle(cx, activity, timeouts.body_idle, None, unacked));
                    return Poll::Ready(Err(Reason::ClientWriteTimeout));
                }
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// The kind of an error of a backend's stream, as a short text.
pub(super) fn describe(error: &io::Error) -> String {
    error.to_string()
}
