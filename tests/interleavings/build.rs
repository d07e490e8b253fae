//! Sets a cfg for this crate alone. Its dependencies must not see it: tokio would be another crate
//! under this cfg.

fn main() {
    println!("cargo::rustc-cfg=tower_sse_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
