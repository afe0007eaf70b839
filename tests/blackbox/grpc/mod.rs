//! gRPC: statuses, deadlines and all four kinds of calls, to backends of HTTP/1.1 and of HTTP/2.

mod h2_backend;
mod h2_client;
