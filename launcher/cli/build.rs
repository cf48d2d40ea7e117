//! Lays out the static program: what it calls of the C library lies together.

fn main() {
    println!("cargo::rerun-if-changed=link-order.txt");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        // Words of LLD, which Rust links this target with.
        let order = format!(
            "-Wl,--symbol-ordering-file={folder}/link-order.txt,--no-warn-symbol-ordering,--pack-dyn-relocs=relr"
        );
        println!("cargo::rustc-link-arg-bin=nacre-launcher={order}");
    }
}
