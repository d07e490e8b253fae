//! Random numbers for values that should differ and need not be secret.

use std::hash::{BuildHasher, RandomState};

/// Returns 64 random bits, from the random keys of a new `RandomState`. In fuzz targets, returns 0.
pub(crate) fn bits() -> u64 {
    // A fuzz target has to be deterministic, so that its findings can be reproduced.
    if cfg!(fuzzing) {
        return 0;
    }
    RandomState::new().hash_one(0_u8)
}

/// Returns a number from 0 (inclusive) to 1 (exclusive), uniformly distributed.
pub(crate) fn fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_at_least_0_and_below_1() {
        assert!((0..10_000).map(|_| fraction()).all(|fraction| (0.0..1.0).contains(&fraction)));
    }
}
