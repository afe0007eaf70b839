//! One HTTP exchange, top to bottom: read the head → route → forward or answer → record.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::io::AsyncWrite;

use super::{
    Client, Next, Scratch,
    attempt::{self, Attempt, Done},
    forward::{self, Origin},
    pump::{Pump, SMALL, poll_fill},
    reply::{self, Ending, Reply},
    retry::{self, Question, Verdict},
};
use crate::{
    base::clock,
    config::model::{
        ListenerTimeouts, PoolTimeouts, Redirect, Retries, Route, RouteAction, TimeoutOverrides,
    },
    http1::{
        self, Version,
        body::{Decoder, Step},
        fields::Known,
        request::{self, Framing, Limits},
    },
    pool::Pool,
    proxy::worker::Worker,
    reason::Reason,
    snapshot::{Listener, Snapshot},
    telemetry::{
        metrics::{PerThread, PoolSlot, class_index, method_index},
        record::{Record, RequestText},
    },
};

/// Where an exchange takes place.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub worker: &'a Rc<Worker>,
    pub snapshot: &'a Snapshot,
    pub listener: &'a Listener,
    pub listener_index: usize,
}

/// What is found out on the way.
#[derive(Debug)]
pub(super) struct Facts {
    pub began: Instant,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub route: Option<usize>,
    pub pool: Option<usize>,
    pub backend: Option<usize>,
    pub attempts: u32,
    pub reused: bool,
    pub request: Option<Duration>,
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub reason: Option<Reason>,
    /// The response was cut in its body: the reason is not what its status says.
    pub cut: bool,
}

/// The rules for forwarding: the pool's, with the route's overrides.
pub(super) struct Rules<'a> {
    pub timeouts: PoolTimeouts,
    pub retries: Option<&'a Retries>,
    pub route: Option<&'a Route>,
    /// When `timeouts.total` ends.
    pub end: Option<Instant>,
}

/// One exchange. Whatever happens to it, dropping included, it is recorded once.
pub(super) struct Exchange<'a> {
    pub place: Place<'a>,
    pub client: &'a mut Client,
    pub head: &'a mut request::Head,
    pub request_id: &'a mut String,
    pub facts: Facts,
    /// Where in the head's buffer the next request begins, if the body has been read to its end.
    rest: Option<usize>,
    recorded: bool,
    /// The client's own wish, in a request that was read whole.
    asked_to_close: bool,
}

/// How reading a head ended.
enum Reading {
    Whole,
    /// The client closed.
    Nothing,
    /// There is nothing to read: the driver had not noticed that all was taken.
    NotYet,
    Refused(Reason),
}

/// Runs one exchange. Afterwards the head's buffer in `scratch` holds what was read beyond this request.
pub(super) async fn run(worker: &Rc<Worker>, client: &mut Client, scratch: &mut Scratch) -> Next {
    let began = clock::now();
    let generation = worker.generation();
    let Some((listener_index, listener)) = client
        .listener_of(&generation)
        .and_then(|index| Some((index, generation.listeners.get(index)?)))
    else {
        return Next::Close;
    };
    let deadline = client
        .first
        .or_else(|| listener.config.timeouts.header.map(|header| began + header));
    let limits = Limits {
        fields: listener.config.http.max_headers,
        bytes: listener.config.http.max_header_size,
    };
    let received = &listener.state.metrics.mine().received;
    let before = scratch.head.bytes.len();
    let reading = read_head(client, &mut scratch.head, limits, deadline).await;
    received.add((scratch.head.bytes.len() - before) as u64);
    match reading {
        Reading::Nothing => return Next::Close,
        // The connection goes on waiting, with nothing of an exchange in its hands.
        Reading::NotYet => return Next::KeepAlive,
        _ => client.first = None,
    }
    let Scratch {
        head, request_id, ..
    } = scratch;
    let place = Place {
        worker,
        snapshot: &generation,
        listener,
        listener_index,
    };
    let mut exchange = Exchange::new(place, client, head, request_id, began);
    exchange.identify();
    let mut io = Io {
        response: &mut scratch.response,
        response_bytes: &mut scratch.response_bytes,
        out: &mut scratch.out,
        request_out: &mut scratch.request_out,
        upload_out: &mut scratch.upload_out,
        upload_bytes: &mut scratch.upload_bytes,
    };
    let next = match reading {
        Reading::Refused(reason) => {
            exchange.head.keep_alive = false;
            forward::new_request_id(exchange.request_id, &mut worker.random.borrow_mut());
            exchange.fail(reason, &mut io).await
        }
        _ => exchange.answer(&mut io).await,
    };
    let rest = exchange.rest;
    exchange.record();
    drop(exchange);
    // What was read beyond this request is the beginning of the next.
    let bytes = &mut scratch.head.bytes;
    match rest {
        Some(rest) if rest < bytes.len() => drop(bytes.drain(..rest)),
        _ => bytes.clear(),
    }
    if next == Next::KeepAlive {
        let unread = scratch.upload_bytes.len();
        bytes.extend_from_slice(&scratch.upload_bytes);
        debug_assert!(
            unread == 0 || rest.is_none(),
            "the next request begins in one place"
        );
    }
    scratch.upload_bytes.clear();
    next
}

/// The buffers of an exchange besides the request head.
pub(super) struct Io<'a> {
    pub response: &'a mut http1::response::Head,
    pub response_bytes: &'a mut Vec<u8>,
    pub out: &'a mut Vec<u8>,
    pub request_out: &'a mut Vec<u8>,
    pub upload_out: &'a mut Vec<u8>,
    pub upload_bytes: &'a mut Vec<u8>,
}

/// Reads until a whole head is there.
async fn read_head(
    client: &mut Client,
    head: &mut request::Head,
    limits: Limits,
    deadline: Option<Instant>,
) -> Reading {
    let mut searched = 0;
    // A head is parsed when its first bytes are there, so that garbage is refused at once, and when its end is; not for
    // every byte that drips in.
    let mut parsed_once = false;
    loop {
        let bytes = head.bytes.len();
        let due = !parsed_once && bytes > 0 || bytes >= limits.bytes;
        if due || http1::head_end(&head.bytes, searched).is_some() {
            parsed_once = true;
            match head.parse(limits) {
                Ok(true) => return Reading::Whole,
                Ok(false) => {}
                Err(refusal) => {
                    tracing::debug!(target: "http", client = ?client.peer, detail = refusal.detail, "request refused");
                    return Reading::Refused(refusal.reason);
                }
            }
        }
        searched = bytes;
        if head.bytes.capacity() - bytes < SMALL / 4 {
            head.bytes.reserve(SMALL);
        }
        let Client { stream, timer, .. } = &mut *client;
        let read = poll_fn(|cx| match poll_fill(stream, cx, &mut head.bytes) {
            Poll::Pending if bytes == 0 => Poll::Ready(None),
            Poll::Pending => timer.poll(cx, deadline).map(|()| None),
            Poll::Ready(read) => Poll::Ready(Some(read)),
        });
        match read.await {
            Some(Ok(1..)) => {}
            Some(_) => return Reading::Nothing,
            None if bytes == 0 => return Reading::NotYet,
            None => return Reading::Refused(Reason::RequestTimeout),
        }
    }
}

impl<'a> Exchange<'a> {
    fn new(
        place: Place<'a>,
        client: &'a mut Client,
        head: &'a mut request::Head,
        request_id: &'a mut String,
        began: Instant,
    ) -> Self {
        let facts = Facts {
            began,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            route: None,
            pool: None,
            backend: None,
            attempts: 0,
            reused: false,
            request: Some(clock::now().saturating_duration_since(began)),
            connect: None,
            first_byte: None,
            reason: None,
            cut: false,
        };
        Self {
            place,
            client,
            head,
            request_id,
            facts,
            rest: None,
            recorded: false,
            asked_to_close: false,
        }
    }

    /// Gives the request its id, one that is refused as well.
    fn identify(&mut self) {
        let Place {
            snapshot, worker, ..
        } = self.place;
        forward::request_id(
            self.request_id,
            self.head,
            &snapshot.config.forwarded,
            self.origin(),
            &mut worker.random.borrow_mut(),
        );
    }

    /// The request is whole: find out what is to be done, and do it.
    async fn answer(&mut self, io: &mut Io<'_>) -> Next {
        let Place {
            snapshot,
            listener,
            listener_index,
            ..
        } = self.place;
        self.rest = self.end_of_body();
        self.asked_to_close = !self.head.keep_alive && self.rest.is_some();
        if self.head.framing != Framing::None && self.is_over_body_limit() {
            return self.fail(Reason::RequestBodySize, io).await;
        }
        if !is_allowed(
            self.client.peer,
            &listener.config.allow,
            &listener.config.deny,
        ) {
            return self.fail(Reason::RequestDenied, io).await;
        }
        if let Some(redirect) = &listener.config.redirect {
            return self.redirect(redirect, io).await;
        }
        let head = &*self.head;
        let has_header = |name: &str, test: &dyn Fn(&[u8]) -> bool| {
            head.fields.values(name, &head.bytes).any(test)
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
            Err(reason) => return self.fail(reason, io).await,
        };
        self.facts.route = route.map(|(index, _)| index);
        let Some((_, route)) = route else {
            return match listener.config.pool {
                Some(pool) => self.forward(pool, None, io).await,
                None => self.fail(Reason::NoRoute, io).await,
            };
        };
        if !is_allowed(self.client.peer, &route.allow, &[]) {
            return self.fail(Reason::RequestDenied, io).await;
        }
        match &route.action {
            RouteAction::Pool(pool) => self.forward(*pool, Some(route), io).await,
            RouteAction::Redirect(redirect) => self.redirect(redirect, io).await,
            RouteAction::Respond { status, body } => {
                self.reply(&Reply::fixed(*status, body), io).await
            }
        }
    }

    fn origin(&self) -> Origin {
        let trusted = &self.place.snapshot.config.trusted_proxies;
        let peer = self.client.peer;
        Origin {
            peer,
            trusted: peer.is_some_and(|peer| contains(trusted, peer)),
        }
    }

    fn is_over_body_limit(&self) -> bool {
        let limit = self
            .place
            .listener
            .config
            .limits
            .request_body
            .unwrap_or(u64::MAX);
        matches!(self.head.framing, Framing::Length(length) if length > limit)
    }

    /// Where the body ends in what has been read, if it does.
    fn end_of_body(&self) -> Option<usize> {
        let mut decoder = self.decoder();
        let mut at = self.head.len;
        loop {
            match decoder.step(self.head.bytes.get(at..)?).ok()? {
                Step::Data(count) | Step::Skip(count) => at += count,
                Step::More => return None,
                Step::End => return Some(at),
            }
        }
    }

    fn decoder(&self) -> Decoder {
        match self.head.framing {
            Framing::None => Decoder::Length(0),
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::chunked(),
        }
    }

    /// Sends the request to backends of a pool until one answers, or no further try is allowed.
    async fn forward(&mut self, pool_index: usize, route: Option<&Route>, io: &mut Io<'_>) -> Next {
        let Place {
            snapshot, worker, ..
        } = self.place;
        let Some(pool) = snapshot.pools.get(pool_index) else {
            return self.fail(Reason::InternalError, io).await;
        };
        self.facts.pool = Some(pool_index);
        let active = Active::new(&pool.state.metrics);
        let rules = Rules::new(pool, route, self.facts.began);
        if rules.retries.is_some() {
            pool.state.budget.request();
        }
        let mut upload = self.upload(&rules, io);
        let mut tried = Vec::new();
        let mut left = rules.retries.map_or(0, |retries| retries.attempts);
        let mut fresh = false;
        let next = loop {
            let picked = pool.pick(&tried, &mut worker.random.borrow_mut());
            let lease = match picked {
                Ok(lease) => lease,
                Err(reason) => break self.fail_forwarding(reason, &upload, io).await,
            };
            self.facts.backend = Some(lease.index);
            self.facts.attempts += 1;
            let attempt = Attempt {
                pool,
                lease: &lease,
                rules: &rules,
                fresh,
            };
            let failure = match attempt::run(self, attempt, &mut upload, io).await {
                Ok(Done::Answered(next)) => break next,
                Ok(Done::Client(reason)) => break self.fail_forwarding(reason, &upload, io).await,
                Err(failure) => failure,
            };
            tracing::debug!(target: "http", pool = %pool.name, backend = %lease.config.name, reason = %failure.reason, detail = %failure.detail, "try failed");
            if !failure.stale {
                lease.state.metrics.mine().failures.add(failure.reason);
                if let Some(transition) = pool.failed(&lease, failure.reason, clock::now()) {
                    transition.log();
                }
            }
            let question = Question {
                left,
                idempotent: rules.is_idempotent(self.head),
                replayable: upload.can_replay(),
            };
            match rules.retries.map_or(Verdict::Fail, |retries| {
                retry::may_retry(&failure, question, retries)
            }) {
                Verdict::Fail => break self.fail_forwarding(failure.reason, &upload, io).await,
                Verdict::Fresh => fresh = true,
                Verdict::Retry => {
                    let share = rules.retries.map_or(0.0, |retries| retries.budget);
                    if !pool.state.budget.try_spend(share, clock::now()) {
                        pool.state.metrics.mine().budget_exhausted.add(1);
                        break self.fail_forwarding(failure.reason, &upload, io).await;
                    }
                    left -= 1;
                    tried.push(lease.index);
                }
            }
            pool.state.metrics.mine().retries.add(failure.reason);
            upload.replay(io.request_out);
        };
        // A tunnel has counted its own.
        self.facts.bytes_in += upload.body();
        let read_all = upload.has_read_all() || self.rest.is_some();
        let in_upload = self.head.framing != Framing::None && upload.has_read_all();
        let (out, bytes, taken) = upload.into_buffers();
        *io.upload_out = out;
        *io.upload_bytes = bytes;
        if in_upload {
            // The next request begins where the upload stopped reading.
            self.rest = None;
            io.upload_bytes.drain(..taken.min(io.upload_bytes.len()));
        } else {
            io.upload_bytes.clear();
        }
        drop(active);
        if next == Next::KeepAlive && !read_all {
            Next::Linger
        } else {
            next
        }
    }

    /// The request as it goes to a backend.
    fn upload(&mut self, rules: &Rules<'_>, io: &mut Io<'_>) -> Pump {
        let Place {
            snapshot, listener, ..
        } = self.place;
        let origin = self.origin();
        let edits = rules.route.map(|route| &route.request_headers);
        io.request_out.clear();
        let close = self
            .facts
            .pool
            .and_then(|pool| snapshot.pools.get(pool))
            .is_some_and(|pool| pool.config.keepalive.idle_per_backend == 0);
        forward::request_head(
            io.request_out,
            self.head,
            &snapshot.config.forwarded,
            origin,
            self.request_id,
            edits,
            close,
        );
        let mut out = std::mem::take(io.upload_out);
        out.clear();
        out.extend_from_slice(io.request_out);
        let mut bytes = std::mem::take(io.upload_bytes);
        bytes.clear();
        if self.head.framing == Framing::None {
            return Pump::new(out, bytes, 0, None, false);
        }
        bytes.extend_from_slice(self.head.bytes.get(self.head.len..).unwrap_or_default());
        let mut upload = Pump::new(
            out,
            bytes,
            0,
            Some(self.decoder()),
            self.head.framing == Framing::Chunked,
        );
        upload.limit_body(listener.config.limits.request_body.unwrap_or(u64::MAX));
        if rules.retries.is_some() {
            upload.keep_for_replay();
        } else {
            upload.allow_splice();
        }
        upload
    }

    /// An error after forwarding has begun.
    async fn fail_forwarding(&mut self, reason: Reason, upload: &Pump, io: &mut Io<'_>) -> Next {
        if matches!(
            reason,
            Reason::ClientDisconnected | Reason::ClientWriteTimeout
        ) {
            self.facts.reason = Some(reason);
            return Next::Reset;
        }
        if !upload.has_read_all() && self.rest.is_none() {
            self.head.keep_alive = false;
        }
        self.fail(reason, io).await
    }

    /// Answers with a redirect. HTTP/1.0 clients may not say which host they mean: for them there is no https URL.
    async fn redirect(&mut self, redirect: &Redirect, io: &mut Io<'_>) -> Next {
        let head = &*self.head;
        let host = head.text(head.host);
        if host.is_empty() && matches!(redirect, Redirect::Https { .. }) {
            return self.fail(Reason::RequestError, io).await;
        }
        let reply = reply::redirect(redirect, host, head.text(head.target));
        self.reply(&reply, io).await
    }

    /// Answers with an error.
    async fn fail(&mut self, reason: Reason, io: &mut Io<'_>) -> Next {
        self.facts.reason = Some(reason);
        let reply = reply::error(reason, &self.place.snapshot.config.errors, self.head);
        self.reply(&reply, io).await
    }

    /// Sends an answer of our own.
    async fn reply(&mut self, reply: &Reply, io: &mut Io<'_>) -> Next {
        let unread =
            self.rest.is_none() && self.facts.attempts == 0 && self.head.framing != Framing::None;
        let keep_alive =
            self.head.keep_alive && !unread && !self.client.entry.control.should_close();
        io.out.clear();
        let ending = Ending {
            is_head: self.head.text(self.head.method) == b"HEAD",
            keep_alive,
            request_id: (
                &self.place.snapshot.config.forwarded.request_id,
                self.request_id,
            ),
            date: "",
        };
        self.facts.bytes_out = self
            .place
            .worker
            .with_date(|date| reply.encode(io.out, Ending { date, ..ending }));
        self.facts.status = reply.status;
        let timeouts = &self.place.listener.config.timeouts;
        let written = write_all(self.client, io.out, timeouts).await;
        self.place
            .listener
            .state
            .metrics
            .mine()
            .sent
            .add(io.out.len() as u64);
        match written {
            Err(reason) => {
                self.facts.reason.get_or_insert(reason);
                Next::Reset
            }
            Ok(()) if keep_alive => Next::KeepAlive,
            Ok(()) if self.asked_to_close && !unread => Next::Close,
            Ok(()) => Next::Linger,
        }
    }

    /// Counts and logs the exchange; the second time it does nothing.
    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let Place {
            snapshot, worker, ..
        } = self.place;
        let facts = &self.facts;
        let took = clock::now().saturating_duration_since(facts.began);
        let pool = facts.pool.and_then(|pool| snapshot.pools.get(pool));
        let metrics = pool
            .map_or(&*snapshot.unrouted, |pool| &pool.state.metrics)
            .mine();
        if facts.status > 0 {
            metrics
                .requests
                .add(method_index(self.head.text(self.head.method)), facts.status);
            if let Some(duration) = metrics.duration.get(class_index(facts.status)) {
                duration.observe(took);
            }
        }
        metrics.request_body.add(facts.bytes_in);
        metrics.response_body.add(facts.bytes_out);
        if let Some(reason) = facts.reason {
            let is_answer = !facts.cut && reason.status(snapshot.config.errors.status) > 0;
            metrics.error(reason, if is_answer { facts.status } else { 0 });
        }
        let status = if facts.status == 0 { 499 } else { facts.status };
        if snapshot
            .access_log
            .wants(status, facts.reason, took, &mut worker.random.borrow_mut())
        {
            self.write_log_line(pool.map(|pool| &**pool), status, took);
        }
    }

    #[cold]
    fn write_log_line(&self, pool: Option<&Pool>, status: u16, took: Duration) {
        let Place {
            snapshot, listener, ..
        } = self.place;
        let (facts, head) = (&self.facts, &*self.head);
        let backend = facts
            .backend
            .and_then(|backend| pool?.backends.get(backend));
        let record = Record {
            began: facts.began,
            listener: listener.config.name.clone(),
            client: self.client.peer,
            status,
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
            route: facts
                .route
                .and_then(|route| snapshot.config.routes.get(route))
                .map(|route| route.name.clone()),
            pool: pool.map(|pool| pool.name.clone()),
            backend: backend.map(|backend| backend.config.name.clone()),
            attempts: facts.attempts,
            reused: facts.reused,
            request: facts.request,
            connect: facts.connect,
            first_byte: facts.first_byte,
            reason: facts.reason,
        };
        let text = RequestText {
            protocol: head.version.name(),
            method: head.text(head.method),
            host: head.text(head.host),
            path: head.text(head.path),
            request_id: self.request_id.as_bytes(),
            traceparent: head.find(Known::Traceparent).unwrap_or_default(),
            user_agent: head.find(Known::UserAgent).unwrap_or_default(),
            referer: head.find(Known::Referer).unwrap_or_default(),
        };
        let names = snapshot.access_log.header_names();
        let headers: Vec<(&str, &[u8])> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), head.fields.values(name, &head.bytes).next()?)))
            .collect();
        snapshot.access_log.write(&record, &text, &headers, took);
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.recorded {
            // The task was dropped in the middle: only the end of a drain does that.
            self.facts.reason = Some(Reason::DrainTimeout);
            self.record();
        }
    }
}

/// Counts a request as under way while it lives.
struct Active<'a>(&'a PoolSlot);

impl<'a> Active<'a> {
    fn new(metrics: &'a PerThread<PoolSlot>) -> Self {
        let slot = metrics.mine();
        slot.requests_active.add(1);
        Self(slot)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.requests_active.sub(1);
    }
}

impl<'a> Rules<'a> {
    fn new(pool: &'a Pool, route: Option<&'a Route>, began: Instant) -> Self {
        let own = &pool.config.timeouts;
        let timeouts = match route.map(|route| &route.timeouts) {
            Some(over) if *over != TimeoutOverrides::default() => PoolTimeouts {
                connect: over.connect.unwrap_or(own.connect),
                response: over.response.unwrap_or(own.response),
                idle: over.idle.unwrap_or(own.idle),
                tcp_idle: over.idle.unwrap_or(own.tcp_idle),
                total: over.total.unwrap_or(own.total),
            },
            _ => own.clone(),
        };
        let retries = match route.and_then(|route| route.retries.as_ref()) {
            Some(over) => over.as_ref(),
            None => pool.config.retries.as_ref(),
        };
        let end = timeouts.total.map(|total| began + total);
        Self {
            timeouts,
            retries,
            route,
            end,
        }
    }

    fn is_idempotent(&self, head: &request::Head) -> bool {
        let method = head.text(head.method);
        self.retries.is_some_and(|retries| {
            retries
                .methods
                .iter()
                .any(|known| known.as_bytes() == method)
        })
    }
}

/// Writes all of `bytes`; a client that reads nothing for `timeouts.body_idle` is given up.
pub(super) async fn write_all(
    client: &mut Client,
    bytes: &[u8],
    timeouts: &ListenerTimeouts,
) -> Result<(), Reason> {
    let Client { stream, timer, .. } = client;
    let mut stream = std::pin::Pin::new(stream);
    let mut sent = 0;
    let mut deadline = None;
    poll_fn(|cx| {
        while let Some(rest @ [_, ..]) = bytes.get(sent..) {
            match stream.as_mut().poll_write(cx, rest) {
                Poll::Ready(Ok(count @ 1..)) => {
                    sent += count;
                    deadline = None;
                }
                Poll::Ready(_) => return Poll::Ready(Err(Reason::ClientDisconnected)),
                Poll::Pending => {
                    let idle = || timeouts.body_idle.map(|idle| clock::now() + idle);
                    deadline = deadline.or_else(idle);
                    ready!(timer.poll(cx, deadline));
                    return Poll::Ready(Err(Reason::ClientWriteTimeout));
                }
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// The whole answer to a connection that is over a limit.
pub(super) fn encode_overload(worker: &Worker, snapshot: &Snapshot, out: &mut Vec<u8>) {
    let head = request::Head {
        version: Version::Http11,
        ..request::Head::default()
    };
    let reply = reply::error(Reason::Overload, &snapshot.config.errors, &head);
    let mut request_id = String::new();
    forward::new_request_id(&mut request_id, &mut worker.random.borrow_mut());
    worker.with_date(|date| {
        reply.encode(
            out,
            Ending {
                is_head: false,
                keep_alive: false,
                request_id: (&snapshot.config.forwarded.request_id, &request_id),
                date,
            },
        )
    });
    snapshot
        .unrouted
        .mine()
        .error(Reason::Overload, reply.status);
}

/// `deny` is stronger than `allow`; an empty `allow` is everybody. A unix socket's peer has no address and is allowed.
pub(in crate::proxy) fn is_allowed(peer: Option<IpAddr>, allow: &[IpNet], deny: &[IpNet]) -> bool {
    let Some(peer) = peer else { return true };
    !contains(deny, peer) && (allow.is_empty() || contains(allow, peer))
}

fn contains(networks: &[IpNet], peer: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&peer))
}

/// The kind of an error of a backend's stream, as a short text.
pub(super) fn describe(error: &io::Error) -> String {
    error.to_string()
}
