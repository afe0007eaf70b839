//! Properties that cannot be seen from outside.

use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use super::*;
use crate::{
    http::head_writer::{HeadWriter as _, RequestLine},
    http2::{
        frame::{self, flag, kind},
        response::ResponseExpectation,
    },
    net::fixture::paused,
};

const GET: RequestLine<'_> = RequestLine {
    method: b"GET",
    is_secure: false,
    authority: b"a",
    target: b"/",
    is_websocket: false,
};

#[test]
fn a_silent_connection_is_kept_while_its_backend_answers_probes() {
    paused(async {
        for is_there in [true, false] {
            let (own, mut peer) = UnixStream::pair().unwrap();
            let mut frames = Vec::new();
            frame::write_settings(&mut frames, &[]);
            peer.write_all(&frames).await.unwrap();
            let deadline = clock::now() + Duration::from_mins(1);
            let on_use_change = Box::new(|_, _| ());
            let opened =
                H2Connection::open(own.into(), on_use_change, 100, Rc::default(), deadline).await;
            let (connection, driver) = opened.unwrap();
            let script = async {
                let stream = connection.open_stream(100).unwrap();
                let expected = ResponseExpectation::default();
                let sent = stream.send_head(expected, true, |block| block.request_line(GET));
                assert!(sent.unwrap() > frame::HEADER_BYTES);
                connection.probe_if_stalled();
                assert!(connection.engine().with_backend(|it| it.probed_at) == Some(None));
                sleep(STALL_TIMEOUT).await;
                connection.probe_if_stalled();
                assert!(!connection.is_retired());
                sleep(PROBE_TIMEOUT / 2).await;
                if is_there {
                    let mut sign = Vec::new();
                    frame::write(&mut sign, kind::SETTINGS, flag::ACK, 0, &[]);
                    peer.write_all(&sign).await.unwrap();
                }
                sleep(PROBE_TIMEOUT).await;
                assert_eq!(connection.is_retired(), !is_there);
                // Open streams go on.
                assert!(connection.engine().other_open_streams(0) == 1);
            };
            tokio::select! {
                biased;
                ended = driver => panic!("the connection has ended: {ended:?}"),
                () = script => {}
            }
        }
    });
}
