//! TLS: what clients and backends see of it, over real connections.

mod backends;
mod clients;
mod proxy_header;
mod reload;
mod trust;
