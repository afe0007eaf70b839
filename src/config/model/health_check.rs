//! `pools.NAME.health_check`.

use std::{fmt, sync::Arc, time::Duration};

use super::TlsOverride;

/// `pools.NAME.health_check`.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheckConfig {
    /// Type of check.
    pub kind: CheckKind,
    /// Another port than the backend's.
    pub port: Option<u16>,
    /// `tls` of checks alone. Default: that of traffic.
    pub tls: TlsOverride,
    /// From one check to the next, jittered by 10 %. Default 2s.
    pub interval: Duration,
    /// The same while the checks say that the backend is down. Default: `interval`.
    pub interval_down: Option<Duration>,
    /// The same until the first good check of the backend. Default: `interval`, or `interval_down`.
    pub interval_starting: Option<Duration>,
    /// For the whole check. Default 1s.
    pub timeout: Duration,
    /// Good checks in a row until up. Default 2.
    pub rise: u32,
    /// Bad checks in a row until down. Default 3.
    pub fall: u32,
    /// Treatment of the sessions and tunnels of a backend that goes down. Default keep.
    pub on_down: OnDown,
}

/// `health_check.on_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDown {
    /// They go on.
    #[default]
    Keep,
    /// They are reset.
    Close,
}

/// `health_check.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckType {
    /// The connection is accepted, and answers `steps` if there are any.
    Tcp,
    /// A request over HTTP gets the expected response.
    Http,
    /// The health service of gRPC answers.
    Grpc,
    /// A Redis server answers.
    Redis,
    /// A MySQL or MariaDB server answers.
    Mysql,
    /// A PostgreSQL server answers.
    Postgres,
    /// A mail server answers.
    Smtp,
}

/// A type of check with what it needs.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// The connection is accepted.
    Tcp,
    /// The connection is accepted, and each step gets what it expects. At least one.
    Steps(Vec<CheckStep>),
    /// The response has the expected status, fields and body.
    Http(Box<HttpCheckConfig>),
    /// The health service of gRPC says SERVING.
    Grpc {
        /// The service that is asked for; empty is the server as a whole.
        service: String,
        /// `:authority`; default: the backend's address.
        host: Option<String>,
    },
    /// PING gets PONG.
    Redis(RedisCheckConfig),
    /// The server begins a handshake, and is ready for clients.
    Mysql {
        /// User of the login, which need not exist. Default balancer.
        user: String,
    },
    /// The server answers the beginning of a session, or a login and a query.
    Postgres(PostgresCheckConfig),
    /// The server is ready for mail.
    Smtp {
        /// Our name in EHLO; default: our address.
        host: Option<String>,
    },
}

/// Request of an http check, and the expected response.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpCheckConfig {
    /// Origin-form target. Default `/`.
    pub path: String,
    /// Default GET.
    pub method: String,
    /// `Host`; default: the backend's address.
    pub host: Option<String>,
    /// Further request fields, by their names in lower case.
    pub headers: Vec<(String, String)>,
    /// Inclusive ranges of status. Default 200-399.
    pub expect: Vec<(u16, u16)>,
    /// Expected response fields, by their names in lower case.
    pub expect_headers: Vec<(String, ExpectedHeader)>,
    /// Must occur in the first 64 KiB of the body.
    pub body: Option<ExpectedText>,
}

/// The expectation for one response field.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpectedHeader {
    /// One of its values is this.
    Equal(String),
    /// The expression matches the whole of one of its values.
    Regex(BytePattern),
    /// It is there, or it is not.
    Present(bool),
}

/// A text that must occur in an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpectedText {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A match of the expression.
    Regex(BytePattern),
}

/// One of `health_check.steps`: at least one of the two is there.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckStep {
    /// Bytes to send first.
    pub send: Option<StepBytes>,
    /// Then expected in what the backend sends.
    pub expect: Option<ExpectedText>,
}

/// Bytes that a step sends.
#[derive(Debug, Clone, PartialEq)]
pub enum StepBytes {
    /// Of the configuration file.
    Plain(Vec<u8>),
    /// Of a `secret_file`.
    Secret(SecretText),
}

/// A redis check.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RedisCheckConfig {
    /// User of AUTH. Default: Redis's own `default`.
    pub user: Option<String>,
    /// Content of `password_file`.
    pub password: Option<SecretText>,
    /// Required role. Default any.
    pub role: Option<RedisRole>,
}

/// `health_check.role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisRole {
    /// It takes writes.
    Master,
    /// It follows a master.
    Replica,
}

/// A postgres check.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresCheckConfig {
    /// Default balancer.
    pub user: String,
    /// Default: the user's name, which is the server's own default.
    pub database: Option<String>,
    /// Content of `password_file`; with it the check logs in.
    pub password: Option<SecretText>,
    /// Required state. Default any.
    pub target: PostgresTarget,
}

/// `health_check.target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostgresTarget {
    /// It is not in recovery.
    Primary,
    /// It is in recovery.
    Standby,
    /// Either.
    #[default]
    Any,
}

/// A secret out of a file, which no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Arc<[u8]>);

impl SecretText {
    /// Keeps `bytes` as a secret.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for sending.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(***)")
    }
}

/// A regular expression over bytes.
#[derive(Clone)]
pub struct BytePattern {
    /// As the file writes it.
    pub text: String,
    /// Compiled; where it must match the whole of something, with that around it.
    pub regex: regex::bytes::Regex,
}

impl PartialEq for BytePattern {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl fmt::Debug for BytePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BytePattern({:?})", self.text)
    }
}
