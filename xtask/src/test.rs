//! `cargo xtask test`: everything that can be tested on this machine, the demo and a real cluster included.

use std::{io, path::Path, thread};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    bench,
    build_ebpf::build_ebpf,
    cluster::Cluster,
    demo, dist, e2e, kernels,
    process::{cargo, on_path, run},
    programs,
    setup::setup,
};

/// What to run.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Only load and try the shipped agent's programs on other kernels, in virtual machines
    #[arg(long)]
    kernels: bool,
}

/// Sets up, builds, and runs all tests; none may be skipped for want of a kernel or of root.
///
/// What depends on parts that a machine need not have (Go, to build an API server; other projects' policy cases beside the
/// workspace) is named where it is left out, at the end, and may not be left out in CI.
pub fn test(root: &Path, options: &Options) -> Result<()> {
    setup(root)?;
    if options.kernels {
        if let Some(why) = kernels::cannot() {
            bail!("other kernels cannot be tried here: {why}");
        }
        return kernels::run(&dist::for_this_machine(root)?.program);
    }
    println!("test: building the eBPF programs");
    build_ebpf(root)?;
    println!("test: unit and integration tests, on the kernel's real hooks");
    let mut tests = cargo(root, ["test", "--workspace", "--locked"]);
    tests.env("NETAUDIT_REQUIRE_KERNEL", "1").env("NETAUDIT_REQUIRE_PROGRAMS", "1");
    let mut left_out = Vec::new();
    let with_cluster = programs::can_be_had()?;
    if with_cluster {
        let [api_server] = programs::find(["kube-apiserver"])?;
        tests.env("NETAUDIT_KUBE_DIR", api_server.parent().unwrap_or(Path::new("/")));
        match programs::operator_definitions(&root.join("xtask/src/definitions")) {
            Ok(Some(directory)) => {
                tests.env("NETAUDIT_DEFINITIONS_DIR", directory);
            }
            made => {
                // Without the network, for one.
                if let Err(error) = made {
                    println!("test: {error:#}");
                }
                left_out.push(
                    "our objects for the Prometheus operator (its definitions could not be made with Go)",
                );
            }
        }
        match programs::own("otelcol", &root.join("xtask/src/otelcol")) {
            Ok(Some(program)) => {
                tests.env("NETAUDIT_OTELCOL", program);
            }
            made => {
                if let Err(error) = made {
                    println!("test: {error:#}");
                }
                left_out
                    .push("our configuration of the OpenTelemetry Collector (it could not be built with Go)");
            }
        }
    } else {
        left_out
            .push("tests on a real API server and cluster (no kube-apiserver, and no Go to build one with)");
    }
    if root.join("../shared/conformance").is_dir() {
        tests.env("NETAUDIT_REQUIRE_SHARED", "1");
    } else {
        left_out.push("other projects' policy cases (no ../shared/conformance)");
    }
    let can_count = on_path("valgrind").is_some();
    if !can_count {
        left_out.push("the count of a verdict's instructions (no valgrind)");
    }
    let no_kernels = kernels::cannot();
    if no_kernels.is_some() {
        left_out.push("other kernels (no Debian, x86-64 or qemu-system-x86_64)");
    }
    ensure!(
        left_out.is_empty() || std::env::var_os("CI").is_none(),
        "in CI nothing may be left out: {}",
        left_out.join("; ")
    );
    let (tested, built) = thread::scope(|scope| {
        let building = with_cluster.then(|| scope.spawn(build_for_the_scenario));
        (run(&mut tests), building.map(|thread| thread.join().expect("it does not panic")))
    });
    tested?;
    built.transpose()?;
    if can_count {
        println!("test: the instructions of a verdict, with few policies and with many");
        bench::policy::check_instructions(root)?;
    }
    println!("test: the demo");
    demo::run(root, &demo::build_agent(root)?, &demo::Options::default())?;
    println!("demo: 1 passed, 0 failed");
    if no_kernels.is_none() {
        println!("test: other kernels");
        kernels::run(&dist::for_this_machine(root)?.program)?;
    }
    if with_cluster {
        println!("test: the scenario on a real cluster");
        e2e::run(root, &dist::for_this_machine(root)?, &e2e::Options::default())?;
        println!("e2e: 1 passed, 0 failed");
    }
    for what in &left_out {
        println!("test: SKIPPED: {what}");
    }
    Ok(())
}

/// Builds what the scenario needs beyond the API server, in the time in which tests wait: where nothing is there yet it takes ten
/// minutes. Threads and processes that this one starts give way to all others too.
fn build_for_the_scenario() -> Result<()> {
    let no_priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads the structure; 0 names the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &no_priority) } != 0 {
        return Err(io::Error::last_os_error()).context("giving way to other processes");
    }
    Cluster::build_programs()
}
