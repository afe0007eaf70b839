//! The place for a filter between the source and the sink of a body, such as a compression. A
//! filter is one variant and one file.

/// A filter of one body.
#[derive(Debug)]
pub(super) enum BodyFilter {
    /// Passes everything on, in two parts, and counts it.
    #[cfg(test)]
    Counting(std::rc::Rc<std::cell::Cell<usize>>),
}

#[cfg_attr(
    not(test),
    expect(unused_variables, unused_mut, reason = "there is no filter yet")
)]
impl BodyFilter {
    /// Filters a part of the body; `emit` takes what is to be sent.
    pub(super) fn apply(&mut self, part: &[u8], mut emit: impl FnMut(&[u8])) {
        match *self {
            #[cfg(test)]
            Self::Counting(ref count) => {
                count.set(count.get() + part.len());
                let (first, second) = part.split_at(part.len() / 2);
                emit(first);
                emit(second);
            }
        }
    }

    /// Ends the body; `emit` takes what was held back.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        match *self {
            #[cfg(test)]
            Self::Counting(_) => emit(b""),
        }
    }
}

/// Passes a part of the body through `filter`, if there is one; `emit` takes what is to be sent.
pub(super) fn apply(filter: &mut Option<BodyFilter>, part: &[u8], mut emit: impl FnMut(&[u8])) {
    match filter {
        Some(filter) => filter.apply(part, emit),
        None => emit(part),
    }
}
