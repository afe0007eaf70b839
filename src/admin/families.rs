//! The table of all metrics: name, kind, labels and help text.
//!
//! A test compares docs/metrics.md with this table. Names and labels are an interface: dashboards
//! and alerts use them, so they never change within a major version.

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Number that only grows while its object exists.
    Counter,
    /// Number that goes up and down.
    Gauge,
    /// Distribution in buckets.
    Histogram,
}

/// Definition of one metric.
#[derive(Debug, Clone, Copy)]
pub struct MetricSpec {
    /// Full name with its prefix.
    pub name: &'static str,
    /// Kind of the metric.
    pub kind: MetricKind,
    /// Names of the labels, in the order of their values.
    pub labels: &'static [&'static str],
    /// Help text: one line on the page.
    pub help: &'static str,
}

macro_rules! families {
    ($( $constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal; )*) => {
        $(
            #[doc = $help]
            pub const $constant: MetricSpec = MetricSpec { name: $name, kind: MetricKind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All metrics, in the order of docs/metrics.md.
        pub const ALL_METRICS: &[MetricSpec] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO Gauge "balancer_build_info" ["version"] "Always 1. The label holds the version.";
    READY Gauge "balancer_ready" [] "1 while /readyz returns 200, otherwise 0.";
    RELOAD_OK Gauge "balancer_config_last_reload_successful" [] "1 if the last load of the configuration succeeded, otherwise 0.";
    RELOAD_TIME Gauge "balancer_config_last_reload_success_timestamp_seconds" [] "Unix time at which the running configuration was loaded.";
    GENERATION Gauge "balancer_config_generation" [] "Number of the running configuration: 1 at start, plus 1 for each reload that changed something.";
    RELOADS Counter "balancer_config_reloads_total" ["result"] "Reloads, by result.";
    LOG_DROPPED Counter "balancer_log_lines_dropped_total" ["log"] "Log lines dropped because the output was full, slow or broken.";
    WORKER_BUSY Counter "balancer_worker_busy_seconds_total" ["worker"] "CPU time of each worker thread.";
    CONNECTIONS_LIMIT Gauge "balancer_connections_limit" [] "Maximum number of open client connections.";

    LISTENER_CONNECTIONS Counter "balancer_listener_connections_total" ["listener"] "Accepted client connections.";
    LISTENER_ACTIVE Gauge "balancer_listener_connections_active" ["listener"] "Open client connections.";
    LISTENER_RECEIVED Counter "balancer_listener_received_bytes_total" ["listener"] "Bytes received from clients.";
    LISTENER_SENT Counter "balancer_listener_sent_bytes_total" ["listener"] "Bytes sent to clients.";
    LISTENER_REJECTED Counter "balancer_listener_connections_rejected_total" ["listener" "reason"] "Client connections refused before their first request, by reason.";
    TLS_HANDSHAKES Counter "balancer_tls_handshakes_total" ["listener" "version" "resumed"] "TLS handshakes with clients.";
    TLS_FAILURES Counter "balancer_tls_handshake_failures_total" ["listener" "reason"] "Failed TLS handshakes with clients, by cause.";
    TLS_EXPIRY Gauge "balancer_tls_certificate_expiry_timestamp_seconds" ["certificate"] "Unix time at which the certificate of a listener expires.";

    REQUESTS Counter "balancer_http_requests_total" ["pool" "method" "code"] "Finished HTTP requests.";
    REQUESTS_ACTIVE Gauge "balancer_http_requests_active" ["pool"] "HTTP requests in progress.";
    REQUEST_DURATION Histogram "balancer_http_request_duration_seconds" ["pool" "code_class"] "Time from the first byte of a request to the last byte of its response.";
    REQUEST_BODY Counter "balancer_http_request_body_bytes_total" ["pool"] "Bytes of request bodies.";
    RESPONSE_BODY Counter "balancer_http_response_body_bytes_total" ["pool"] "Bytes of response bodies.";
    ERRORS Counter "balancer_errors_total" ["pool" "reason" "code"] "HTTP requests and TCP sessions that ended with an error, by reason.";
    RETRIES Counter "balancer_retries_total" ["pool" "reason"] "Retries, by the reason of the failed attempt.";
    BUDGET_EXHAUSTED Counter "balancer_retry_budget_exhausted_total" ["pool"] "Retries that the retry budget prevented.";
    QUEUE_LENGTH Gauge "balancer_queue_length" ["pool"] "Requests and sessions that wait for a backend.";
    QUEUE_WAIT Histogram "balancer_queue_wait_seconds" ["pool"] "Time in the queue of requests and sessions that had to wait.";
    STICKY Counter "balancer_sticky_total" ["pool" "result"] "Responses by backends of pools with `sticky`, by what became of the client's session.";
    TRIALS Counter "balancer_ejection_trials_total" ["pool" "result"] "Trial requests of ejected backends, by result.";
    RATE_LIMITED Counter "balancer_rate_limited_total" ["listener"] "Requests refused by `rate_limit`.";

    DISCOVERY_LOOKUPS Counter "balancer_discovery_lookups_total" ["source" "name" "result"] "Look-ups of names and reads of lists of members, by result.";
    DISCOVERY_MEMBERS Gauge "balancer_discovery_members" ["source" "name"] "Addresses or members in the last good answer.";
    DISCOVERY_FAILING Gauge "balancer_discovery_failing" ["source" "name"] "1 while the last look-up has failed, otherwise 0.";

    POOL_BACKENDS Gauge "balancer_pool_backends" ["pool" "state"] "Number of backends, by state.";
    SESSIONS Counter "balancer_tcp_sessions_total" ["pool" "result"] "Finished TCP sessions, by result.";
    SESSIONS_ACTIVE Gauge "balancer_tcp_sessions_active" ["pool"] "TCP sessions in progress.";
    SESSION_DURATION Histogram "balancer_tcp_session_duration_seconds" ["pool"] "Duration of TCP sessions.";

    BACKEND_UP Gauge "balancer_backend_up" ["pool" "backend"] "1 if the state is `up`, otherwise 0.";
    BACKEND_WEIGHT Gauge "balancer_backend_weight" ["pool" "backend"] "Weight in force: that of the file, or the one that an operator has set.";
    BACKEND_OVERRIDE Gauge "balancer_backend_override" ["pool" "backend" "override"] "1 while an operator has set the state or the weight of the backend.";
    BACKEND_SLOW_START Gauge "balancer_backend_slow_start_ratio" ["pool" "backend"] "Share of its weight that the backend has: below 1 during slow start.";
    BACKEND_CHANGED Gauge "balancer_backend_last_state_change_timestamp_seconds" ["pool" "backend"] "Unix time of the last change of state.";
    BACKEND_STATE Gauge "balancer_backend_state" ["pool" "backend" "state"] "1 for the current state of the backend, 0 for all other states.";
    BACKEND_REQUESTS Counter "balancer_backend_requests_total" ["pool" "backend" "code_class"] "Responses from the backend, by class of status.";
    BACKEND_RESPONSE Histogram "balancer_backend_response_seconds" ["pool" "backend"] "Time from the sent request head to the first byte of the response.";
    BACKEND_ACTIVE Gauge "balancer_backend_connections_active" ["pool" "backend"] "Connections to the backend that are in use.";
    BACKEND_IDLE Gauge "balancer_backend_connections_idle" ["pool" "backend"] "Idle keepalive connections to the backend.";
    BACKEND_CONNECTIONS Counter "balancer_backend_connections_total" ["pool" "backend" "result"] "Attempts to connect to the backend for traffic.";
    BACKEND_FAILURES Counter "balancer_backend_failures_total" ["pool" "backend" "reason"] "Failed attempts and failure responses, by reason.";
    BACKEND_EJECTIONS Counter "balancer_backend_ejections_total" ["pool" "backend" "reason"] "Ejections, by the reason of the last failure.";
    BACKEND_CHECKS Counter "balancer_backend_health_checks_total" ["pool" "backend" "result"] "Health checks, by result.";
    BACKEND_CHECK_DURATION Gauge "balancer_backend_health_check_duration_seconds" ["pool" "backend"] "Duration of the last health check.";

    PROCESS_CPU Counter "process_cpu_seconds_total" [] "User and system CPU time of the process.";
    PROCESS_START Gauge "process_start_time_seconds" [] "Unix time at which the process started.";
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" [] "Resident memory in bytes.";
    PROCESS_VIRTUAL Gauge "process_virtual_memory_bytes" [] "Virtual memory in bytes.";
    PROCESS_THREADS Gauge "process_threads" [] "Number of threads.";
    PROCESS_OPEN_FDS Gauge "process_open_fds" [] "Number of open file descriptors.";
    PROCESS_MAX_FDS Gauge "process_max_fds" [] "Maximum number of open file descriptors.";
}
