//! State of one stream: received bytes, windows, and the tasks that wait for them.

use std::{
    task::{Context, Waker},
    time::Instant,
};

use super::{StreamError, recv_buffer::RecvBuffer, recv_windows::RecvWindow};
use crate::http2::{frame::MAX_WINDOW_SIZE, response::ResponseExpectation};

/// State of a stream in use.
#[derive(Debug)]
pub(super) struct StreamEntry {
    pub recv_buffer: RecvBuffer,
    pub recv_window: RecvWindow,
    pub send_window: SendWindow,
    /// Content that the peer has not yet acknowledged by a WINDOW_UPDATE of this stream.
    pub unacknowledged: usize,
    /// Kinds of response that the request allows.
    pub expected: ResponseExpectation,
    /// Number of interim responses received.
    pub interim_responses: u32,
    /// Arrival of its request; `None` for a stream of ours.
    pub opened_at: Option<Instant>,
    /// A reset by the peer before this time is a rapid one; `None`: at any time.
    pub rapid_until: Option<Instant>,
    /// The peer sent WINDOW_UPDATE for this stream.
    pub window_update_received: bool,
    /// The peer sent END_STREAM.
    pub end_received: bool,
    /// We sent END_STREAM.
    pub end_sent: bool,
    /// Set when the stream was closed before both sides ended it.
    pub error: Option<StreamError>,
    /// Position of its last frame in the output of the connection.
    pub sent_until: u64,
    /// Queued in `ConnectionState::waiting`.
    pub is_queued: bool,
    /// It waits to send content, which needs a window, unlike fields.
    pub waits_for_window: bool,
    pub read_waker: Option<Waker>,
    pub write_waker: Option<Waker>,
    pub close_waker: Option<Waker>,
}

impl StreamEntry {
    pub(super) fn new(recv_window: RecvWindow, send_window: SendWindow) -> Self {
        Self {
            recv_buffer: RecvBuffer::new(),
            recv_window,
            send_window,
            unacknowledged: 0,
            expected: ResponseExpectation::default(),
            interim_responses: 0,
            opened_at: None,
            rapid_until: None,
            window_update_received: false,
            end_received: false,
            end_sent: false,
            error: None,
            sent_until: 0,
            is_queued: false,
            waits_for_window: false,
            read_waker: None,
            write_waker: None,
            close_waker: None,
        }
    }

    /// True if it counts against the stream limit: neither reset nor ended by both sides, RFC 9113
    /// section 5.1.2.
    pub(super) fn is_open(&self) -> bool {
        self.error.is_none() && !(self.end_received && self.end_sent)
    }

    /// True if a reset by the peer at `now` is a rapid one.
    pub(super) fn is_rapid(&self, now: Instant) -> bool {
        self.rapid_until.is_none_or(|until| now < until)
    }

    /// Wakes the reader: bytes or the end were received.
    pub(super) fn wake_reader(&mut self) {
        wake(&mut self.read_waker);
    }

    /// Wakes the writer: something may be sent.
    pub(super) fn wake_writer(&mut self) {
        wake(&mut self.write_waker);
    }

    /// Closes the stream; bytes received before can still be read.
    pub(super) fn close(&mut self, why: StreamError) {
        if self.error.is_some() {
            return;
        }
        self.error = Some(why);
        for waker in [
            &mut self.read_waker,
            &mut self.write_waker,
            &mut self.close_waker,
        ] {
            wake(waker);
        }
    }
}

/// Stores the waker of the current task, without a clone if it is stored already.
pub(super) fn set_waker(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// Wakes and removes the waker.
pub(super) fn wake(waker: &mut Option<Waker>) {
    waker.take().into_iter().for_each(Waker::wake);
}

/// Send window; negative after the peer has reduced its initial window, RFC 9113 section 6.9.2.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) const fn new(size: u32) -> Self {
        Self(size as i64)
    }

    /// Bytes that may be sent.
    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(super) const fn consume(&mut self, count: usize) {
        self.0 -= count as u32 as i64;
    }

    /// Adds `by`. False: the window exceeds 2^31-1.
    pub(super) fn adjust(&mut self, by: i64) -> bool {
        self.0 += by;
        self.0 <= i64::from(MAX_WINDOW_SIZE)
    }
}

/// Share of the connection window per stream. On a shared connection a stream may have at most four
/// times as much unacknowledged as it leaves to the others, so a backend that stops reading one
/// request still receives the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowShare {
    /// Connection window that is available.
    pub left: usize,
    /// Unacknowledged content of the connection; `None` if the window is not shared.
    pub unacknowledged: Option<usize>,
}

impl WindowShare {
    /// Part of the connection window that the stream may use.
    pub(super) fn available_to(self, entry: &StreamEntry) -> usize {
        match self.unacknowledged {
            None => self.left,
            // Bytes that the connection window has got back block no other stream.
            Some(all) => {
                let spare = (4 * self.left).saturating_sub(entry.unacknowledged.min(all));
                spare.div_ceil(5)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_both_sides_have_ended_is_not_open() {
        let mut entry = StreamEntry::new(RecvWindow::new(1), SendWindow::new(1));
        entry.end_received = true;
        assert!(entry.is_open());
        entry.end_sent = true;
        assert!(!entry.is_open(), "the client may begin another one");
        let mut entry = StreamEntry::new(RecvWindow::new(1), SendWindow::new(1));
        entry.close(StreamError::Lost);
        assert!(!entry.is_open());
    }

    #[test]
    fn an_unread_stream_leaves_window_to_others_and_alone_it_has_all() {
        let mut stuck: Vec<StreamEntry> = Vec::new();
        let mut left = 65_535;
        for _ in 0..5 {
            let mut entry = StreamEntry::new(RecvWindow::new(1), SendWindow::new(1));
            loop {
                let sent = WindowShare {
                    left,
                    unacknowledged: Some(65_535 - left),
                };
                let capacity = sent.available_to(&entry).min(1_000);
                if capacity == 0 {
                    break;
                }
                entry.unacknowledged += capacity;
                left -= capacity;
            }
            assert!(left > 0, "capacity for another one");
            stuck.push(entry);
        }
        let (entry, left) = (stuck.remove(0), 100);
        let capacity = |unacknowledged| {
            let share = WindowShare {
                left,
                unacknowledged,
            };
            share.available_to(&entry)
        };
        assert_eq!(
            [capacity(None), capacity(Some(0)), capacity(Some(65_435))],
            [100, 80, 0]
        );
    }

    #[test]
    fn windows_can_be_negative_but_not_above_the_maximum() {
        let mut window = SendWindow::new(100);
        window.consume(100);
        assert!(window.adjust(-50));
        assert_eq!(window.available(), 0);
        assert!(window.adjust(60));
        assert_eq!(window.available(), 10);
        assert!(window.adjust(i64::from(MAX_WINDOW_SIZE) - 10));
        assert!(!window.adjust(1));
    }
}
