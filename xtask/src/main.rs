//! netaudit's own tasks: `cargo xtask help` lists them.

#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, and each side uses a part of it")]
mod lab;

mod demo;
mod tools;

fn main() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    demo::run(root)
}
