//! For this crate alone, and not for what it depends on: tokio would be another one under this cfg.

fn main() {
    println!("cargo::rustc-cfg=tower_sse_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
