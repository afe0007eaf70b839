//! The steps of one exchange, top to bottom: read the head → check → route → forward or respond
//! → record.
//!
//! Forwarding goes on in `attempts.rs`; our own responses are in `reply.rs`.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{
    buffers::ExchangeBuffers,
    client_address::is_allowed,
    client_side::ClientSide,
    connection::ClientConnection,
    exchange::{Exchange, ExchangeContext, ForwardSettings},
    outcome::AfterExchange,
    read::{self, HeadReadOutcome},
    record::ActiveRequest,
    reply::LocalReply,
};
use crate::{
    config::model::{RouteAction, RouteConfig, SplitShare},
    proxy::worker::{Generation, Worker},
    reason::Reason,
    route,
    snapshot::Listener,
};

/// Most pipelined requests served from one read; the rest are dropped, and the client resends
/// them.
const MAX_PIPELINED: u32 = 100;

/// A route with its index.
type FoundRoute<'a> = (usize, &'a RouteConfig);

/// A request that is not forwarded.
struct RefusedRequest {
    reason: Reason,
    /// Time until the rate limit allows another one.
    retry_after: Option<Duration>,
}

impl From<Reason> for RefusedRequest {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            retry_after: None,
        }
    }
}

/// Runs one exchange. Afterwards the request's buffer holds the bytes read beyond the request.
pub(super) async fn run(
    worker: &Rc<Worker>,
    client: &mut ClientConnection,
    buffers: &mut ExchangeBuffers,
) -> AfterExchange {
    let began = worker.now();
    let generation = worker.generation();
    let Some((_, listener)) = client.listener_in(&generation) else {
        return AfterExchange::Close;
    };
    let reading = match &client.side {
        ClientSide::H1(_) => read::head(client, &mut buffers.request, listener, began).await,
        // The stream was opened with its head.
        ClientSide::H2(side) => read::received_head(side, &buffers.request, listener),
    };
    match reading {
        HeadReadOutcome::Closed => return AfterExchange::Close,
        // The connection goes on waiting, without exchange state.
        HeadReadOutcome::NothingYet => return AfterExchange::KeepAlive,
        HeadReadOutcome::Http2 => return AfterExchange::Http2,
        HeadReadOutcome::Complete | HeadReadOutcome::Refused(_) => {
            (client.first_request_deadline, client.is_unused) = (None, false);
        }
    }
    let generation = newest(worker, client, generation);
    let Some((listener_index, listener)) = client.listener_in(&generation) else {
        return AfterExchange::Close;
    };
    let context = ExchangeContext {
        worker,
        snapshot: &generation,
        listener,
        listener_index,
    };
    let mut exchange = Exchange::new(context, client, buffers, began);
    let next = match reading {
        HeadReadOutcome::Refused(reason) => exchange.refuse(reason).await,
        _ => exchange.serve().await,
    };
    let next_request_at = exchange.complete();
    buffers.keep_pipelined(next_request_at);
    next
}

/// The generation in force for a request whose head is complete: a reload may have replaced
/// `generation` while it came. If the listener was removed meanwhile, the request is served by
/// the generation that it began with.
fn newest(worker: &Worker, client: &mut ClientConnection, generation: Generation) -> Generation {
    let newest = worker.generation();
    if newest.revision == generation.revision {
        return generation;
    }
    let serves_http = |(_, listener): (usize, &Listener)| listener.service.has_requests();
    if client.listener_in(&newest).is_some_and(serves_http) {
        newest
    } else {
        generation
    }
}

impl<'a> Exchange<'a> {
    /// Serves a request whose head is complete.
    async fn serve(&mut self) -> AfterExchange {
        self.note_request_end();
        match self.admit() {
            Ok(route) => self.take_route(route).await,
            Err(RefusedRequest {
                reason,
                retry_after: Some(wait),
            }) => self.fail_for(reason, wait).await,
            Err(RefusedRequest { reason, .. }) => self.fail(reason).await,
        }
    }

    /// Responds to a malformed request: nothing behind it is run, as its end is not known.
    async fn refuse(&mut self, reason: Reason) -> AfterExchange {
        self.buffers.request.keep_alive = false;
        self.fail(reason).await
    }

    /// Notes the end of the request, if it was read with its head, and what follows from that.
    fn note_request_end(&mut self) {
        self.next_request_at = self.end_of_body();
        let Some(end) = self.next_request_at else {
            return;
        };
        self.request_read = true;
        self.client_asked_to_close = !self.head().keep_alive;
        let is_pipelined = end < self.head().bytes.len();
        self.pipeline_limit_reached =
            is_pipelined && self.client.pipelined_requests >= MAX_PIPELINED;
    }

    /// Checks whether the request may be served, and finds its route.
    fn admit(&mut self) -> Result<Option<FoundRoute<'a>>, RefusedRequest> {
        let listener = self.context.listener;
        if !is_allowed(
            self.address.client,
            &listener.config.allow,
            &listener.config.deny,
        ) {
            return Err(Reason::RequestDenied.into());
        }
        if self.is_misdirected() {
            return Err(Reason::MisdirectedRequest.into());
        }
        let route = self.find_route()?;
        self.record.route = route.map(|(index, _)| index);
        if self.is_over_body_limit() {
            return Err(Reason::RequestBodySize.into());
        }
        if route.is_some_and(|(_, route)| !is_allowed(self.address.client, &route.allow, &[])) {
            return Err(Reason::RequestDenied.into());
        }
        self.take_rate(self.record.route)
            .map_err(|wait| RefusedRequest {
                reason: Reason::RateLimited,
                retry_after: Some(wait),
            })?;
        Ok(route)
    }

    /// Finds the route of the request.
    fn find_route(&mut self) -> Result<Option<FoundRoute<'a>>, Reason> {
        let snapshot = self.context.snapshot;
        let head = &self.buffers.request;
        let has_header = |name: &str, test: &dyn Fn(&[u8]) -> bool| {
            head.fields.sent_values(name, &head.bytes).any(test)
        };
        let found = snapshot.router.find(
            self.context.listener_index,
            head.text(head.host),
            head.text(head.path),
            head.text(head.method),
            &has_header,
        );
        match found {
            Ok(index) => {
                let route =
                    index.and_then(|index| Some((index, snapshot.config.routes.get(index)?)));
                debug_assert_eq!(route.is_some(), index.is_some(), "the router's own index");
                Ok(route)
            }
            Err(reason) => {
                // Refused like a malformed head: nothing behind it is run.
                self.buffers.request.keep_alive = false;
                Err(reason)
            }
        }
    }

    /// Does what the route says, or the listener if the request has none.
    async fn take_route(&mut self, route: Option<FoundRoute<'a>>) -> AfterExchange {
        let ExchangeContext {
            snapshot,
            listener,
            worker,
            ..
        } = self.context;
        let Some((route_index, route)) = route else {
            return match (&listener.config.redirect, listener.config.pool) {
                (Some(redirect), _) => self.redirect(redirect).await,
                (None, Some(pool)) => self.forward(pool, None, None).await,
                (None, None) => self.fail(Reason::NoRoute).await,
            };
        };
        let pool = match &route.action {
            RouteAction::Pool(pool) => *pool,
            RouteAction::Split(shares) => self
                .sticky_share(shares)
                .unwrap_or_else(|| route::pick_pool(shares, &mut worker.random.borrow_mut())),
            RouteAction::Redirect(redirect) => return self.redirect(redirect).await,
            RouteAction::Respond(respond) => return self.reply(&LocalReply::fixed(respond)).await,
        };
        let head = self.head();
        match snapshot.router.rewrite(route_index, head.text(head.target)) {
            Ok(target) => self.forward(pool, Some(route), target).await,
            Err(reason) => self.fail(reason).await,
        }
    }

    /// The pool of a split to which the client's sticky cookie leads. A share of 0 gives its
    /// clients to the others.
    fn sticky_share(&self, shares: &[SplitShare]) -> Option<usize> {
        let pools = &self.context.snapshot.pools;
        let shares = shares.iter().filter(|share| share.weight > 0);
        let mut picked = shares.filter(|share| {
            let pool = pools.get(share.pool);
            pool.is_some_and(|pool| self.sticky_backend(pool).is_some())
        });
        picked.next().map(|share| share.pool)
    }

    /// True if the client was shown the certificate of another host than it requests, and
    /// `tls.same_host` refuses that (RFC 9110 section 15.5.20).
    fn is_misdirected(&self) -> bool {
        let rules = &self.context.listener.config.tls;
        if rules.as_ref().is_none_or(|rules| !rules.same_host) {
            return false;
        }
        let negotiated = self.client.side.negotiated_tls();
        let (Some(tls), Some(negotiated)) = (&self.context.listener.tls, negotiated) else {
            return false;
        };
        let head = self.head();
        let host = head.text(head.host);
        !host.is_empty() && !tls.may_serve(host, negotiated.server_name.as_deref())
    }

    fn is_over_body_limit(&self) -> bool {
        let limit = self.context.listener.config.limits.request_body;
        let length = self.head().framing.declared_length();
        length.is_some_and(|length| length > limit.unwrap_or(u64::MAX))
    }

    /// Sends the request to backends of a pool until one responds, or no further attempt is
    /// allowed.
    async fn forward(
        &mut self,
        pool_index: usize,
        route: Option<&RouteConfig>,
        target: Option<Vec<u8>>,
    ) -> AfterExchange {
        let Some(pool) = self.context.snapshot.pools.get(pool_index) else {
            debug_assert!(false, "an index of the generation");
            return self.fail(Reason::InternalError).await;
        };
        self.record.pool = Some(pool_index);
        // A reload since the head was read may have changed the pool's backends.
        let newest = self.newer(pool);
        let pool: &Arc<_> = newest.as_ref().unwrap_or(pool);
        self.record.newest_pool.clone_from(&newest);
        let active = ActiveRequest::new(&pool.state.metrics);
        let retries = route.and_then(|route| route.retries_for(pool_index));
        let mut settings = ForwardSettings::new(pool, route, retries, self.began);
        settings.limit_to_client(self.head(), self.began);
        settings.target = target;
        if settings.retries.is_some() {
            pool.state.budget.request();
        }
        let mut upload = self.upload(&settings);
        let next = self.try_backends(pool, &settings, &mut upload).await;
        let read_all = self.take_back(upload);
        drop(active);
        debug_assert!(
            read_all || next != AfterExchange::KeepAlive,
            "the rest of a request is not the next one"
        );
        next
    }
}
