//! netaudit's own tasks: `cargo xtask help` lists them.

#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, and each side uses a part of it")]
mod lab;

mod build_ebpf;
mod demo;
mod http;
mod tools;

fn main() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if std::env::args().nth(1).as_deref() == Some("build-ebpf") {
        println!("{:?}", build_ebpf::build_ebpf(root)?);
        return Ok(());
    }
    let cli = <Cli as clap::Parser>::parse();
    demo::run(root, &root.join("target/debug/netaudit"), &cli.options)
}
#[derive(clap::Parser)]
struct Cli { #[command(flatten)] options: demo::Options }
