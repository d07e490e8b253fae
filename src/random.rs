//! A little randomness, for what is to differ and need not be secret.

use std::hash::{BuildHasher, RandomState};

/// 64 bits. Each `RandomState` has keys of its own.
pub(crate) fn bits() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// From 0 up to 1, uniformly.
pub(crate) fn part() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_from_0_up_to_1() {
        assert!((0..10_000).map(|_| part()).all(|part| (0.0..1.0).contains(&part)));
    }
}
