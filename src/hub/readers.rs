//! The readers of one subscription, one for each of its topics.

use super::reader::Reader;
use std::{
    ops::{Deref, DerefMut},
    slice,
};

/// The readers of one subscription. A subscription has one reader for each of its topics. Most
/// subscriptions have a single topic, and then need no allocation for it.
pub(super) enum Readers {
    One(Reader),
    Many(Box<[Reader]>),
}

impl Default for Readers {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl From<Vec<Reader>> for Readers {
    fn from(mut readers: Vec<Reader>) -> Self {
        match readers.pop() {
            Some(only) if readers.is_empty() => Self::One(only),
            last => {
                readers.extend(last);
                Self::Many(readers.into())
            }
        }
    }
}

impl Deref for Readers {
    type Target = [Reader];

    #[inline]
    fn deref(&self) -> &[Reader] {
        match self {
            Self::One(reader) => slice::from_ref(reader),
            Self::Many(readers) => readers,
        }
    }
}

impl DerefMut for Readers {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Reader] {
        match self {
            Self::One(reader) => slice::from_mut(reader),
            Self::Many(readers) => readers,
        }
    }
}
