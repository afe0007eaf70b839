//! The limits of request rates of one generation, by listener and route.

use std::{sync::Arc, time::Instant};

use crate::{
    base::{
        rate::{ClientRateLimit, RateBuckets},
        rng::Random,
    },
    config::model::{Config, ListenerConfig, RateLimitConfig, RouteConfig},
};

/// The limits of a generation.
#[derive(Debug, Default)]
pub(super) struct GenerationRateLimits {
    listeners: Vec<Option<ClientRateLimit>>,
    routes: Vec<RouteRateLimit>,
    /// Made with the first limit and handed on, so that a reload grants no client a fresh burst: a
    /// limit of the same name, rate and burst finds its buckets again.
    buckets: Option<Arc<RateBuckets>>,
}

/// The limit that holds for the requests of a route.
#[derive(Debug)]
enum RouteRateLimit {
    OfListener,
    Unlimited,
    Own(ClientRateLimit),
}

impl GenerationRateLimits {
    /// The limits of `config`, with the buckets of the generation before.
    pub(super) fn new(config: &Config, previous: Option<&Self>, now: Instant) -> Self {
        let of_listener = |listener: &ListenerConfig| {
            let name = format!("listener {}", listener.name);
            Some(client_limit(&name, listener.rate_limit.as_ref()?))
        };
        let of_route = |route: &RouteConfig| match &route.rate_limit {
            None => RouteRateLimit::OfListener,
            Some(None) => RouteRateLimit::Unlimited,
            Some(Some(rule)) => RouteRateLimit::Own(client_limit(&route_key(config, route), rule)),
        };
        let listeners: Vec<_> = config.listeners.iter().map(of_listener).collect();
        let routes: Vec<_> = config.routes.iter().map(of_route).collect();
        let is_own = |route: &RouteRateLimit| matches!(route, RouteRateLimit::Own(_));
        let any = listeners.iter().any(Option::is_some) || routes.iter().any(is_own);
        let buckets = any.then(|| {
            let kept = previous.and_then(|previous| previous.buckets.clone());
            kept.unwrap_or_else(|| Arc::new(RateBuckets::new(now, &mut Random::from_system())))
        });
        Self {
            listeners,
            routes,
            buckets,
        }
    }

    /// The limit for a request that `listener` got and `route` takes, with its buckets.
    pub(super) fn find(
        &self,
        listener: usize,
        route: Option<usize>,
    ) -> Option<(&RateBuckets, &ClientRateLimit)> {
        let buckets = self.buckets.as_deref()?;
        debug_assert!(
            listener < self.listeners.len() && route.is_none_or(|route| route < self.routes.len()),
            "indexes of another generation"
        );
        let limit = match route.and_then(|route| self.routes.get(route)) {
            Some(RouteRateLimit::Own(limit)) => limit,
            Some(RouteRateLimit::Unlimited) => return None,
            Some(RouteRateLimit::OfListener) | None => self.listeners.get(listener)?.as_ref()?,
        };
        Some((buckets, limit))
    }
}

fn client_limit(name: &str, rule: &RateLimitConfig) -> ClientRateLimit {
    ClientRateLimit::new(name, rule.per_client, rule.burst)
}

/// The identity of a route's limit. A route has no name, so it is known by its conditions, wherever
/// it stands in the list: moving it must not forget its clients.
fn route_key(config: &Config, route: &RouteConfig) -> String {
    let conditions = (&route.hosts, &route.path, &route.methods, &route.headers);
    let listeners: Vec<_> = route
        .listeners
        .iter()
        .filter_map(|index| Some(&config.listeners.get(*index)?.name))
        .collect();
    format!("route {listeners:?} {conditions:?}")
}
