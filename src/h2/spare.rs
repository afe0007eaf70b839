//! Heads and content buffers that are not in use, kept per thread with their memory: a stream needs
//! them for a moment, between the arrival of a frame and the exchange that takes it.

use std::{cell::RefCell, collections::VecDeque, thread::LocalKey};

use crate::http::message::{RequestHead, ResponseHead};

/// Spare ones of each kind per thread.
const MAX_SPARE: usize = 1024;
/// Largest buffer of a spare one.
const MAX_SPARE_BYTES: usize = 4 << 10;
/// Most fields for which a spare head has memory.
const MAX_SPARE_FIELDS: usize = 64;

thread_local! {
    static REQUESTS: RefCell<Vec<RequestHead>> = const { RefCell::new(Vec::new()) };
    static RESPONSES: RefCell<Vec<ResponseHead>> = const { RefCell::new(Vec::new()) };
    static CONTENTS: RefCell<Vec<VecDeque<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take<T: Default>(spare: &'static LocalKey<RefCell<Vec<T>>>) -> T {
    spare.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn put<T>(spare: &'static LocalKey<RefCell<Vec<T>>>, it: T, capacity: usize) {
    if capacity == 0 || capacity > MAX_SPARE_BYTES {
        return;
    }
    // When a thread ends, its list may be gone before its last streams.
    let _ = spare.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < MAX_SPARE {
            spare.push(it);
        }
    });
}

/// Takes an empty request head.
pub(super) fn take_request() -> RequestHead {
    let mut head = take(&REQUESTS);
    head.clear();
    head
}

/// Keeps the memory of a request head.
pub fn put_request(head: RequestHead) {
    if head.fields.capacity() <= MAX_SPARE_FIELDS {
        let capacity = head.bytes.capacity();
        put(&REQUESTS, head, capacity);
    }
}

/// Takes an empty response head.
pub(super) fn take_response() -> ResponseHead {
    let mut head = take(&RESPONSES);
    head.clear();
    head
}

/// Keeps the memory of a response head.
pub(super) fn put_response(head: ResponseHead) {
    if head.fields.capacity() <= MAX_SPARE_FIELDS {
        let capacity = head.bytes.capacity();
        put(&RESPONSES, head, capacity);
    }
}

/// Takes an empty buffer for content.
pub(super) fn take_content() -> VecDeque<u8> {
    take(&CONTENTS)
}

/// Keeps the memory of a buffer for content.
pub(super) fn put_content(mut content: VecDeque<u8>) {
    content.clear();
    let capacity = content.capacity();
    put(&CONTENTS, content, capacity);
}
