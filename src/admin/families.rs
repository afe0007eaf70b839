//! Every metric: name, kind, labels, meaning. docs/metrics.md is compared with this list by a test.

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while its object lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// With its prefix.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// In the order of the values.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($( $constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal; )*) => {
        $(
            #[doc = $help]
            pub const $constant: Family = Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them, in the order of docs/metrics.md.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO Gauge "balancer_build_info" ["version"] "Always 1; the label is the version.";
    READY Gauge "balancer_ready" [] "1 while in service and not draining, as /readyz says.";
    RELOAD_OK Gauge "balancer_config_last_reload_successful" [] "1 if the last load of the configuration succeeded.";
    RELOAD_TIME Gauge "balancer_config_last_reload_success_timestamp_seconds" [] "When the configuration in service was loaded.";
    GENERATION Gauge "balancer_config_generation" [] "1 for the configuration at start, one more for each reload that changed something.";
    RELOADS Counter "balancer_config_reloads_total" ["result"] "Reloads by result.";
    LOG_DROPPED Counter "balancer_log_lines_dropped_total" ["log"] "Log lines lost because the output was full, slow or failed.";
    WORKER_BUSY Counter "balancer_worker_busy_seconds_total" ["worker"] "CPU time of each worker thread.";
    CONNECTIONS_LIMIT Gauge "balancer_connections_limit" [] "Client connections that may be open at a time.";

    LISTENER_CONNECTIONS Counter "balancer_listener_connections_total" ["listener"] "Accepted client connections.";
    LISTENER_ACTIVE Gauge "balancer_listener_connections_active" ["listener"] "Open client connections.";
    LISTENER_RECEIVED Counter "balancer_listener_received_bytes_total" ["listener"] "Bytes received from clients.";
    LISTENER_SENT Counter "balancer_listener_sent_bytes_total" ["listener"] "Bytes sent to clients.";
    LISTENER_REJECTED Counter "balancer_listener_connections_rejected_total" ["listener" "reason"] "Client connections refused right after the accept, or with their PROXY header.";
    TLS_HANDSHAKES Counter "balancer_tls_handshakes_total" ["listener" "version" "resumed"] "TLS handshakes with clients.";
    TLS_FAILURES Counter "balancer_tls_handshake_failures_total" ["listener" "reason"] "TLS handshakes with clients that failed.";
    TLS_EXPIRY Gauge "balancer_tls_certificate_expiry_timestamp_seconds" ["certificate"] "When the certificate of a listener expires, since the Unix epoch.";

    REQUESTS Counter "balancer_http_requests_total" ["pool" "method" "code"] "Finished HTTP requests.";
    REQUESTS_ACTIVE Gauge "balancer_http_requests_active" ["pool"] "HTTP requests under way.";
    REQUEST_DURATION Histogram "balancer_http_request_duration_seconds" ["pool" "code_class"] "From the first byte of a request to the last of its response.";
    REQUEST_BODY Counter "balancer_http_request_body_bytes_total" ["pool"] "Bytes of request bodies.";
    RESPONSE_BODY Counter "balancer_http_response_body_bytes_total" ["pool"] "Bytes of response bodies.";
    ERRORS Counter "balancer_errors_total" ["pool" "reason" "code"] "Exchanges and sessions that ended with a reason.";
    RETRIES Counter "balancer_retries_total" ["pool" "reason"] "Further tries by the reason of the try before.";
    BUDGET_EXHAUSTED Counter "balancer_retry_budget_exhausted_total" ["pool"] "Further tries that the retry budget forbade.";
    RATE_LIMITED Counter "balancer_rate_limited_total" ["listener"] "Requests refused by `rate_limit`.";

    POOL_BACKENDS Gauge "balancer_pool_backends" ["pool" "state"] "Backends by state.";
    SESSIONS Counter "balancer_tcp_sessions_total" ["pool" "result"] "Finished TCP sessions.";
    SESSIONS_ACTIVE Gauge "balancer_tcp_sessions_active" ["pool"] "TCP sessions under way.";
    SESSION_DURATION Histogram "balancer_tcp_session_duration_seconds" ["pool"] "How long TCP sessions took.";

    BACKEND_UP Gauge "balancer_backend_up" ["pool" "backend"] "1 while the state is up.";
    BACKEND_WEIGHT Gauge "balancer_backend_weight" ["pool" "backend"] "Weight from the configuration.";
    BACKEND_CHANGED Gauge "balancer_backend_last_state_change_timestamp_seconds" ["pool" "backend"] "When the state last changed.";
    BACKEND_STATE Gauge "balancer_backend_state" ["pool" "backend" "state"] "1 for the state the backend is in, 0 for all others.";
    BACKEND_REQUESTS Counter "balancer_backend_requests_total" ["pool" "backend" "code_class"] "Responses of the backend.";
    BACKEND_RESPONSE Histogram "balancer_backend_response_seconds" ["pool" "backend"] "From the sent request to the first byte of the response.";
    BACKEND_ACTIVE Gauge "balancer_backend_connections_active" ["pool" "backend"] "Connections to the backend in use.";
    BACKEND_IDLE Gauge "balancer_backend_connections_idle" ["pool" "backend"] "Idle keepalive connections to the backend.";
    BACKEND_CONNECTIONS Counter "balancer_backend_connections_total" ["pool" "backend" "result"] "Attempts to connect to the backend for traffic.";
    BACKEND_FAILURES Counter "balancer_backend_failures_total" ["pool" "backend" "reason"] "Tries that failed.";
    BACKEND_EJECTIONS Counter "balancer_backend_ejections_total" ["pool" "backend" "reason"] "Ejections by the reason of the last failure.";
    BACKEND_CHECKS Counter "balancer_backend_health_checks_total" ["pool" "backend" "result"] "Health checks.";
    BACKEND_CHECK_DURATION Gauge "balancer_backend_health_check_duration_seconds" ["pool" "backend"] "How long the last health check took.";

    PROCESS_CPU Counter "process_cpu_seconds_total" [] "User and system CPU time of the process.";
    PROCESS_START Gauge "process_start_time_seconds" [] "When the process began, since the Unix epoch.";
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" [] "Resident memory.";
    PROCESS_VIRTUAL Gauge "process_virtual_memory_bytes" [] "Virtual memory.";
    PROCESS_THREADS Gauge "process_threads" [] "Threads.";
    PROCESS_OPEN_FDS Gauge "process_open_fds" [] "Open file descriptors.";
    PROCESS_MAX_FDS Gauge "process_max_fds" [] "Most file descriptors that may be open.";
}
