//! Closed sets of values: every word that the file, the logs and the API have for one stands here,
//! once.

use tracing::level_filters::LevelFilter;

use super::{
    AccessFormat, BackendProtocol, BalancingPolicy, CheckType, ClientAuth, ErrorFormat,
    ListenerProtocol, LogFormat, OnDown, PerBackend, PostgresTarget, ProxyVersion, RedisRole,
    ResolveMode, RetryCondition, SameSite, SecureCookie, TlsVersion, WhenAllDown,
};
use crate::reason::StatusProfile;

/// A closed set of values, for readers that take any of them.
pub trait ValueSet: Copy + 'static {
    /// Every value, in the order of the docs.
    const ALL: &'static [Self];
    /// Their words, in the same order.
    const NAMES: &'static [&'static str];
}

macro_rules! value_set {
    ($set:ident { $($variant:ident: $name:literal),+ $(,)? }) => {
        impl $set {
            /// Every value, in the order of the docs.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Their words, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The word for it in the file, in logs and in the API.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl ValueSet for $set {
            const ALL: &'static [Self] = Self::ALL;
            const NAMES: &'static [&'static str] = Self::NAMES;
        }
    };
}

value_set!(ResolveMode {
    Each: "each",
    One: "one"
});
value_set!(PerBackend {
    Full: "full",
    State: "state",
    None: "none"
});
value_set!(LogFormat {
    Auto: "auto",
    Text: "text",
    Json: "json"
});
value_set!(AccessFormat {
    Json: "json",
    Combined: "combined"
});
value_set!(StatusProfile {
    Unified: "unified",
    Split: "split"
});
value_set!(ErrorFormat {
    Json: "json",
    Html: "html",
    Auto: "auto"
});
value_set!(ListenerProtocol {
    Http: "http",
    Tcp: "tcp"
});
value_set!(TlsVersion {
    Tls12: "1.2",
    Tls13: "1.3"
});
value_set!(ClientAuth {
    Required: "required",
    Optional: "optional"
});
value_set!(ProxyVersion { V1: "v1", V2: "v2" });
value_set!(BackendProtocol {
    Http1: "http1",
    H2: "h2",
    H2c: "h2c"
});
value_set!(BalancingPolicy {
    RoundRobin: "round_robin",
    LeastConnections: "least_connections",
    RandomTwo: "random_two",
    LeastTime: "least_time",
    Hash: "hash",
    First: "first",
});
value_set!(CheckType {
    Tcp: "tcp",
    Http: "http",
    Grpc: "grpc",
    Redis: "redis",
    Mysql: "mysql",
    Postgres: "postgres",
    Smtp: "smtp"
});
value_set!(RedisRole {
    Master: "master",
    Replica: "replica"
});
value_set!(PostgresTarget {
    Primary: "primary",
    Standby: "standby",
    Any: "any"
});
value_set!(OnDown {
    Keep: "keep",
    Close: "close"
});
value_set!(WhenAllDown {
    Reject: "reject",
    FailOpen: "fail_open"
});
value_set!(SameSite {
    Lax: "lax",
    Strict: "strict",
    None: "none"
});
value_set!(SecureCookie {
    Auto: "auto",
    Always: "true",
    Never: "false"
});
value_set!(RetryCondition {
    Connect: "connect",
    Stale: "stale",
    Terminated: "terminated",
    Timeout: "timeout",
    Invalid: "invalid",
});

impl ValueSet for LevelFilter {
    const ALL: &'static [Self] = &[
        Self::ERROR,
        Self::WARN,
        Self::INFO,
        Self::DEBUG,
        Self::TRACE,
    ];
    const NAMES: &'static [&'static str] = &["error", "warn", "info", "debug", "trace"];
}
