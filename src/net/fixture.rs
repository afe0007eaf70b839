//! Connections over 127.0.0.1 for the tests of this module and of those above.

use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    runtime::{Builder, Runtime},
};

use super::{driver, stream::Stream};
use crate::base::address::BackendAddress;

/// A runtime with a paused clock: it goes on to the next timer when every task waits. Events of
/// sockets come first.
pub(crate) fn paused_runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .on_thread_park(|| {
            driver::end_turn();
        })
        .build()
        .unwrap()
}

/// Runs `test` with a paused clock.
pub(crate) fn paused<T>(test: impl Future<Output = T>) -> T {
    paused_runtime().block_on(test)
}

/// Connects a pair: the end of the test, and the end of the code under test.
pub(crate) async fn pair() -> (TcpStream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (peer.unwrap(), accepted.unwrap().0.into())
}

/// Returns an address without a listener.
pub(crate) async fn dead_address() -> BackendAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    BackendAddress::Ip(listener.local_addr().unwrap())
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::from_tcp(stream.into_std().unwrap()).unwrap()
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::from_unix(stream.into_std().unwrap()).unwrap()
    }
}
