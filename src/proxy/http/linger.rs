//! Lingering close (RFC 9112 section 9.6): ends our direction and discards what the client still
//! sends, as a reset would destroy a response that the client has not read yet.

use std::{cell::Cell, future::poll_fn, io, task::Poll, time::Duration};

use super::{client_side::ClientSide, connection::ClientConnection};
use crate::{
    base::clock,
    net::{
        buffer::{BufferSize, PooledBuffer},
        copy::RelaySide as _,
    },
    proxy::worker::Worker,
};

/// Bytes that a lingering connection discards before it yields to other connections.
const MAX_DISCARD_BYTES_PER_POLL: usize = 1 << 20;

/// Limits of a lingering close.
#[derive(Debug, Clone, Copy)]
pub(super) struct LingerLimits {
    /// Total time, while the client goes on sending.
    total: Duration,
    /// Time without a byte.
    idle: Duration,
    /// Connections and streams of a worker that may linger at a time; more are closed at once.
    max_connections: usize,
}

/// Limits after a response to a request whose body was not read to its end. Many clients read
/// nothing before they have sent everything, and would lose the response.
pub(super) const LINGER_AFTER_RESPONSE: LingerLimits = LingerLimits {
    total: Duration::from_mins(1),
    idle: Duration::from_secs(5),
    max_connections: 1_024,
};
/// Limits after a refusal, after the end of an HTTP/2 connection and during a drain: the client
/// has no request under way.
pub(super) const LINGER_AFTER_GOAWAY: LingerLimits = LingerLimits {
    total: Duration::from_secs(8),
    idle: Duration::from_secs(2),
    max_connections: 256,
};

/// Closes the connection of `client` within `limits`. `lingering` counts such connections.
pub(super) async fn linger(
    lingering: &Cell<usize>,
    mut client: ClientConnection,
    limits: LingerLimits,
) {
    let mut ended = false;
    if lingering.get() >= limits.max_connections || !try_shutdown_write(&client, &mut ended) {
        return;
    }
    lingering.set(lingering.get() + 1);
    let began = clock::now();
    let mut last_read = began;
    poll_fn(|cx| {
        while !ended && client.side.poll_write_ready(cx).is_ready() {
            if !try_shutdown_write(&client, &mut ended) {
                return Poll::Ready(());
            }
        }
        let limits = if client.entry.close_signal.listen(cx) {
            LINGER_AFTER_GOAWAY
        } else {
            limits
        };
        let mut discarded = 0;
        loop {
            let mut discard = PooledBuffer::take(BufferSize::Medium);
            match client.side.poll_discard(cx, &mut discard) {
                Poll::Ready(Ok(count @ 1..)) => {
                    discarded += count;
                    last_read = clock::now();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let deadline = (began + limits.total).min(last_read + limits.idle);
                    return client.timer.poll(cx, Some(deadline));
                }
            }
            if last_read >= began + limits.total {
                return Poll::Ready(());
            }
            if discarded >= MAX_DISCARD_BYTES_PER_POLL {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await;
    lingering.set(lingering.get() - 1);
}

/// Ends our direction, or leaves `ended` false if that must wait for the client (TLS may have bytes
/// to write); false if the connection is gone.
fn try_shutdown_write(client: &ClientConnection, ended: &mut bool) -> bool {
    // A stream has ended with its response.
    let ClientSide::H1(stream) = &client.side else {
        *ended = true;
        return true;
    };
    let result = stream.shutdown_write();
    *ended = result.is_ok();
    result.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |()| true)
}

/// Writes a few last bytes and closes the connection so that the client gets them. Bytes that do
/// not fit into the empty send buffer are not waited for.
pub(in crate::proxy) async fn write_and_close(
    worker: &Worker,
    client: ClientConnection,
    bytes: &[u8],
) {
    if client.side.try_write(bytes).is_ok() {
        Box::pin(linger(&worker.lingering, client, LINGER_AFTER_GOAWAY)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{base::socket_key::SocketKey, net::fixture, proxy::connections::ClientConnections};

    /// Lingers on a client that sends a byte after each of `pauses`; gives the time that took.
    async fn lingers(pauses: impl Iterator<Item = Duration>, limits: LingerLimits) -> Duration {
        let (mut peer, stream) = fixture::pair().await;
        let bind = Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()));
        let entry = Rc::new(ClientConnections::default()).enter(Rc::clone(&bind));
        let client = ClientConnection::new(stream, None, bind, entry, None);
        let (lingering, began) = (Cell::new(0), clock::now());
        let sends = async {
            for pause in pauses {
                tokio::time::sleep(pause).await;
                if peer.write_all(b"a").await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = linger(&lingering, client, limits) => {}
            () = sends => {}
        }
        assert_eq!(lingering.get(), 0);
        clock::now() - began
    }

    #[test]
    fn a_client_that_goes_on_sending_is_waited_for_and_one_that_never_stops_is_not() {
        fixture::paused(async {
            let seconds = Duration::from_secs;
            let limits = LINGER_AFTER_RESPONSE;
            let honest = std::iter::repeat_n(seconds(4), 12);
            let took = lingers(honest, limits).await;
            assert!(took >= seconds(48 + 5) && took < seconds(55), "{took:?}");
            for pause in [seconds(4), Duration::from_millis(1)] {
                let took = lingers(std::iter::repeat(pause), limits).await;
                assert!(took >= limits.total && took < seconds(62), "{took:?}");
            }
            let took = lingers(std::iter::empty(), limits).await;
            assert!(took >= limits.idle && took < seconds(6), "{took:?}");
        });
    }
}
