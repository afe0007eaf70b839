//! `routes[]`, and what a request is matched with and changed by.

use std::sync::Arc;

use ipnet::IpNet;

use super::{RateLimitConfig, RedirectConfig, RetriesConfig, TimeoutOverrides};

/// `routes[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// Name in logs: `routes[3]`.
    pub name: Arc<str>,
    /// `first`: goes before every route without it. Default false.
    pub first: bool,
    /// Indexes into [`Config::listeners`](super::Config::listeners); empty is every http listener.
    pub listeners: Vec<usize>,
    /// Host names; empty is any.
    pub hosts: Vec<HostMatch>,
    /// Default any.
    pub path: PathMatch,
    /// Methods, as sent; empty is any.
    pub methods: Vec<String>,
    /// Every one must hold.
    pub headers: Vec<HeaderMatch>,
    /// Action for a request that matches.
    pub action: RouteAction,
    /// `rewrite`: the path and host that the backend gets.
    pub rewrite: RewriteConfig,
    /// `request_headers`, applied to what the backend gets.
    pub request_headers: HeaderEdits,
    /// `response_headers`, applied to what the client gets.
    pub response_headers: HeaderEdits,
    /// Overrides of the pool's `timeouts`; only the given ones.
    pub timeouts: TimeoutOverrides,
    /// Override of the pool's `retries`; `Some(None)` is `none`. With `split` see
    /// [`SplitShare::retries`].
    pub retries: Option<Option<RetriesConfig>>,
    /// Override of the listener's `rate_limit`; `Some(None)` is `none`.
    pub rate_limit: Option<Option<RateLimitConfig>>,
    /// Clients that may use the route; empty is all.
    pub allow: Vec<IpNet>,
}

impl RouteConfig {
    /// The route's override of the retries of a pool that it sends requests to: `Some(None)` is
    /// `none`.
    pub fn retries_for(&self, pool: usize) -> Option<&Option<RetriesConfig>> {
        match &self.action {
            RouteAction::Split(shares) => shares
                .iter()
                .find(|share| share.pool == pool)?
                .retries
                .as_ref(),
            _ => self.retries.as_ref(),
        }
    }
}

/// One entry of `routes[].host` or `listeners.NAME.sni`, in lower case, without port and final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostMatch {
    /// `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `example.com`: any name below it, at any depth.
    Suffix(String),
}

/// `routes[].path`, `.path_exact`, `.path_regex`.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// No condition.
    Any,
    /// `/a/b`: this path and all below it, by whole segments. Without a final slash, except `/`.
    Prefix(String),
    /// The whole path.
    Exact(String),
    /// A regular expression that must match the whole path, see [`whole_path`].
    Regex(regex::Regex),
}

/// The pattern of `path_regex` made to match the whole path. `.` takes line feeds too: clients can
/// send them escaped, and a path must not get past an expression such as `/admin/.*` by one.
pub fn whole_path(pattern: &str) -> String {
    format!(r"\A(?s:{pattern})\z")
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Prefix(a), Self::Prefix(b)) | (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// One entry of `routes[].headers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// The whole value; `None` (written `"*"`): it only has to be there.
    pub value: Option<String>,
}

impl HeaderMatch {
    /// True for a value of this field as sent. Fields of one hop (RFC 9110 section 7.6.1) are lists
    /// of words without case: one of the words is enough.
    pub fn holds(&self, sent: &[u8]) -> bool {
        let Some(wanted) = self.value.as_deref().map(str::as_bytes) else {
            return true;
        };
        let is_list = || {
            matches!(
                self.name.as_str(),
                "connection"
                    | "keep-alive"
                    | "proxy-connection"
                    | "te"
                    | "transfer-encoding"
                    | "upgrade"
            )
        };
        let is_wanted = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(wanted);
        sent == wanted
            || is_list() && (is_wanted(sent) || sent.split(|byte| *byte == b',').any(is_wanted))
    }
}

/// Action of a route.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// Index into [`Config::pools`](super::Config::pools).
    Pool(usize),
    /// `split`: one of these pools for each request, by weight. Not empty, no pool twice, some
    /// weight over 0.
    Split(Vec<SplitShare>),
    /// A response with `Location`.
    Redirect(RedirectConfig),
    /// A fixed response.
    Respond(RespondConfig),
}

/// `routes[].respond`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RespondConfig {
    /// 200..=599. Default 200.
    pub status: u16,
    /// At most 64 KiB. Default empty.
    pub body: String,
    /// Media type of the body. Default `text/plain; charset=utf-8`.
    pub content_type: String,
    /// Further fields of the response, `Content-Type` not among them.
    pub headers: Vec<(String, String)>,
}

/// One entry of `routes[].split`.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitShare {
    /// Index into [`Config::pools`](super::Config::pools).
    pub pool: usize,
    /// 0..=256: its share of the sum of all. 0 gets nothing.
    pub weight: u16,
    /// The route's override of this pool's `retries`; `Some(None)` is `none`.
    pub retries: Option<Option<RetriesConfig>>,
}

/// `routes[].rewrite`. `Default` changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RewriteConfig {
    /// `path` or `strip_prefix`.
    pub path: PathRewrite,
    /// `host`: the Host that the backend gets, a name with or without a port. Default: the
    /// client's.
    pub host: Option<String>,
}

/// Change of a request's path. Texts begin with `/` and hold only what a path may hold (RFC 3986),
/// without empty and dot segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathRewrite {
    /// The path stays as it came.
    #[default]
    Keep,
    /// `strip_prefix`: these segments are taken off its beginning.
    Strip(String),
    /// `path`: replaces what the route's `path` matched, or all of what `path_exact` matched.
    Replace(String),
    /// `path` in a route with `path_regex`: replaces the whole path.
    Expand(Vec<PathPiece>),
}

/// A part of a path made from the groups of a regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPiece {
    /// As it is.
    Text(String),
    /// The group with this number, 0 for the whole path; nothing if it took no part in the match.
    Group(usize),
}

/// `request_headers`, `response_headers`: first `remove`, then `set`, then `add`. Values have no
/// control bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Replaces every field of the name.
    pub set: Vec<(String, String)>,
    /// Adds a field.
    pub add: Vec<(String, String)>,
    /// Names; a final `*` stands for any end of a name. That never takes `Host`, `Expect`, or
    /// fields of the connection or the framing.
    pub remove: Vec<String>,
}
