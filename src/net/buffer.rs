//! Buffers for bytes in flight: taken when there is something to read, returned when it was sent.
//!
//! Each thread has a free list. So an idle connection holds no buffer, and a busy one gets memory
//! that is still in the cache and needs no zeroing.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Size of a buffer. Transfers begin small and grow while reads fill their buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BufferSize {
    /// 16 KiB.
    Small,
    /// 64 KiB.
    Medium,
    /// 256 KiB.
    Large,
}

impl BufferSize {
    /// Length of the buffer in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 16 * 1024,
            Self::Medium => 64 * 1024,
            Self::Large => 256 * 1024,
        }
    }

    /// The next larger size; the largest stays.
    #[must_use]
    pub const fn larger(self) -> Self {
        match self {
            Self::Small => Self::Medium,
            Self::Medium | Self::Large => Self::Large,
        }
    }

    /// Most free buffers of this size that a thread keeps: 2 MiB of each size.
    const fn max_free(self) -> usize {
        2 * 1024 * 1024 / self.bytes()
    }
}

thread_local! {
    /// Free buffers by [`BufferSize`].
    static FREE_BUFFERS: RefCell<[Vec<Box<[u8]>>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// A buffer of the calling thread, returned to the free list on drop unless it was made from a
/// `Vec`. It still holds bytes of earlier use: zeroing would cost more than many reads do.
#[derive(Debug)]
pub struct PooledBuffer {
    bytes: Box<[u8]>,
    size: BufferSize,
}

impl PooledBuffer {
    /// Takes a free buffer of `size`, or allocates one.
    pub fn take(size: BufferSize) -> Self {
        let free = FREE_BUFFERS.with_borrow_mut(|free| free.get_mut(size as usize)?.pop());
        let bytes = free.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice());
        Self { bytes, size }
    }
}

impl From<Vec<u8>> for PooledBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into_boxed_slice(),
            size: BufferSize::Small,
        }
    }
}

impl Deref for PooledBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // `try_with`: when a thread ends, its free list may be destroyed before its last buffers.
        let _ = FREE_BUFFERS.try_with(|free| {
            if let Some(list) = free.borrow_mut().get_mut(self.size as usize)
                && bytes.len() == self.size.bytes()
                && list.len() < self.size.max_free()
            {
                list.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_the_next_one_taken() {
        let mut first = PooledBuffer::take(BufferSize::Medium);
        first[0] = 7;
        let place = first.as_ptr();
        drop(first);
        let again = PooledBuffer::take(BufferSize::Medium);
        assert_eq!((again.as_ptr(), again[0]), (place, 7));
        assert_eq!(again.len(), BufferSize::Medium.bytes());
    }

    #[test]
    fn a_buffer_made_from_other_bytes_is_not_kept() {
        let buffer = PooledBuffer::from(vec![7; 20]);
        assert_eq!(&buffer[..], [7; 20]);
        drop(buffer);
        assert_eq!(
            PooledBuffer::take(BufferSize::Small).len(),
            BufferSize::Small.bytes()
        );
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_free_buffers() {
        drop(
            (0..200)
                .map(|_| PooledBuffer::take(BufferSize::Small))
                .collect::<Vec<_>>(),
        );
        let kept = FREE_BUFFERS.with_borrow(|free| free[BufferSize::Small as usize].len());
        assert_eq!(kept, BufferSize::Small.max_free());
    }
}
