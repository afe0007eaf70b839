//! The PROXY header of the load balancer in front of us, which comes before any other byte on
//! listeners with `accept_proxy`.
//!
//! Must not know what happens to a connection that is refused, nor what comes after the header. The
//! format is in `net/proxy_protocol/`.

use std::{future::Future, pin::pin, time::Instant};

use tokio::time::{Duration, timeout_at};

use super::reasons;
use crate::{
    config::model::ProxyVersion,
    net::{
        proxy_protocol::{self, ProxyHeader},
        stream::Stream,
    },
    reason::Reason,
};

/// Time for the header where the listener has none for request heads (`timeouts.header: none`).
/// Senders write it before anything else, so a late one does not come at all.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the header of a connection that was just accepted, and not one byte of what follows it.
/// `stop` is the end of all connections.
///
/// # Errors
/// The reason of the refusal; `None` if the connection ended without a byte, as TCP health checks
/// of us do.
pub(super) async fn read_proxy_header(
    stream: &Stream,
    version: Option<ProxyVersion>,
    deadline: Instant,
    stop: impl Future<Output = ()>,
) -> Result<ProxyHeader, Option<Reason>> {
    let mut stop = pin!(stop);
    let receive = timeout_at(
        deadline.into(),
        proxy_protocol::receive_header(stream, version),
    );
    let received = tokio::select! {
        biased;
        received = receive => received,
        () = &mut stop => return Err(Some(Reason::DrainTimeout)),
    };
    let Ok(received) = received else {
        return Err(Some(Reason::RequestTimeout));
    };
    received.map_err(|error| {
        tracing::debug!(target: "listener", peer = ?stream.peer_ip(), %error, "no PROXY header");
        reasons::of_proxy_header(&error)
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{
        base::clock,
        net::fixture::{pair, paused},
    };

    #[test]
    fn a_header_that_does_not_come_is_refused_when_its_time_is_over() {
        paused(async {
            for begun in ["", "PROXY TCP4 192.0.2.1"] {
                let (mut peer, stream) = pair().await;
                peer.write_all(begun.as_bytes()).await.unwrap();
                let began = clock::now();
                let taken = read_proxy_header(&stream, None, began + READ_TIMEOUT, pending()).await;
                assert_eq!(taken, Err(Some(Reason::RequestTimeout)), "{begun:?}");
                let took = clock::now().saturating_duration_since(began);
                assert!(took >= READ_TIMEOUT && took < READ_TIMEOUT * 2, "{took:?}");
            }
        });
    }

    #[tokio::test]
    async fn the_end_of_all_connections_ends_the_wait() {
        let (_peer, stream) = pair().await;
        let taken = read_proxy_header(&stream, None, clock::now() + READ_TIMEOUT, ready(())).await;
        assert_eq!(taken, Err(Some(Reason::DrainTimeout)));
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_a_byte_is_no_refusal() {
        let (peer, stream) = pair().await;
        drop(peer);
        let taken = read_proxy_header(&stream, None, clock::now() + READ_TIMEOUT, pending()).await;
        assert_eq!(taken, Err(None));
    }
}
