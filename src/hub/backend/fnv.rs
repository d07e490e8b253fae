/// Returns the FNV-1a hash of a text. The hash is part of ids and of stored data, so all nodes have
/// to compute the same hash. The hashers of `std` may differ between versions of the compiler.
pub(super) fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::fnv;

    /// The expected hashes are from the test suite of the authors of FNV-1a (draft-eastlake-fnv).
    #[test]
    fn hash_is_fnv_1a() {
        assert_eq!(fnv(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv("foobar"), 0x8594_4171_f739_67e8);
    }
}
