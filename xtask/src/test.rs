//! `cargo xtask test`: everything that can be tested on this machine, the demo included.

use std::path::Path;

use anyhow::Result;

use crate::{
    build_ebpf::build_ebpf,
    demo, kube,
    process::{cargo, run},
    setup::setup,
};

/// Sets up, builds, and runs all tests; none may be skipped for want of a kernel or of root.
pub fn test(root: &Path) -> Result<()> {
    setup(root)?;
    println!("test: building the eBPF programs");
    build_ebpf(root)?;
    println!("test: unit and integration tests, on the kernel's real hooks");
    let mut tests = cargo(root, ["test", "--workspace", "--locked"]);
    tests.env("NETAUDIT_REQUIRE_KERNEL", "1");
    if let Some(programs) = kube::api_server()? {
        tests.env("NETAUDIT_KUBE_DIR", programs);
    }
    run(&mut tests)?;
    println!("test: the demo");
    let result = demo::run(root, &demo::build_agent(root)?, &demo::Options::default());
    println!("demo: {} passed, {} failed", u8::from(result.is_ok()), u8::from(result.is_err()));
    result
}
