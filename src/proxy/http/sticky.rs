//! The cookie of a sticky session in a response. Pure.

use super::header_edits::is_decided;
use crate::{
    config::model::HeaderEdits,
    http::{
        cookies,
        fields::{HeadField, list},
        head_writer::HeadWriter,
        message::ResponseHead,
    },
};

/// The cookie of a sticky session, for the response of a backend.
#[derive(Debug, Clone, Copy)]
pub struct StickyCookie<'a> {
    /// Its name. It is balancer's alone: backends cannot set a cookie of this name.
    pub name: &'a str,
    /// Value of `Set-Cookie`; `None`: the client has the right cookie.
    pub field: Option<&'a str>,
}

impl StickyCookie<'_> {
    /// True for a `Set-Cookie` of the backend for this cookie.
    pub(super) fn replaces(self, field: &HeadField, head: &ResponseHead) -> bool {
        head.text(field.name).eq_ignore_ascii_case(b"set-cookie")
            && cookies::sets(head.text(field.value), self.name)
    }

    /// Writes the cookie. `edits` do not touch it.
    pub(super) fn write(self, out: &mut impl HeadWriter) {
        if let Some(field) = self.field {
            out.field(b"Set-Cookie", field.as_bytes());
        }
    }

    /// Writes `Cache-Control: private` beside a new cookie, unless the response of the backend
    /// says as much or `edits` decide about it: a cache would give the cookie of one client to all.
    pub(super) fn write_cache_control(
        self,
        out: &mut impl HeadWriter,
        head: &ResponseHead,
        edits: Option<&HeaderEdits>,
    ) {
        const CACHE_CONTROL: &str = "Cache-Control";
        if self.field.is_none() || is_decided(edits, CACHE_CONTROL) {
            return;
        }
        let mut sent = head.fields.values(CACHE_CONTROL, &head.bytes);
        let is_private = sent.any(|value| {
            list(value).any(|directive| {
                directive.eq_ignore_ascii_case(b"private")
                    || directive.eq_ignore_ascii_case(b"no-store")
            })
        });
        if !is_private {
            out.field(CACHE_CONTROL.as_bytes(), b"private");
        }
    }
}
