//! Names the linker script for the bare-metal image.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../boot/link.ld");
    println!("cargo::rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bin=gearshift=-T{script}");
        println!("cargo::rustc-link-arg-bin=gearshift=--no-dynamic-linker");
        println!("cargo::rustc-link-arg-bin=gearshift=-z");
        println!("cargo::rustc-link-arg-bin=gearshift=max-page-size=4096");
    }
}
