//! The way out of the kernel: how fast records of real sockets are taken out of the ring and decoded.
//!
//! A round fills the ring with datagrams to ever new destinations while nobody drains, and then takes all of it. Beside
//! the rate stand the same for decoding alone, from ordinary memory, and how often the reader would have been woken. Then
//! a ring that has no room, and how long it takes to take what was folded. Prints a table on stderr and JSON on stdout. Needs root. Started by `cargo xtask bench ring`.

use std::{
    error::Error,
    fs,
    hint::black_box,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::Instant,
};

use netaudit::{
    kernel::{Clock, Event, Kernel, Options, abi, decode, encode},
    model::Observation,
};
use serde_json::json;

const ROUNDS: usize = 7;
/// As many as a ring of this size holds, nearly.
const RING_BYTES: u32 = 32 << 20;
const RECORDS: u32 = 200_000;
/// Flows that are folded by as many keys.
const FOLDS: u32 = 10_000;
/// As the agent does it.
const BATCH: usize = 4_096;

/// A cgroup that this process is in while it lives.
struct Stage {
    path: PathBuf,
    before: PathBuf,
}

impl Stage {
    fn enter() -> Result<Self, Box<dyn Error>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = PathBuf::from(mount.and_then(|line| line.split(' ').nth(1)).ok_or("no cgroup v2")?);
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let before = mount.join(own);
        let path = mount.join(format!("netaudit-bench-{}", std::process::id()));
        fs::create_dir(&path)?;
        let stage = Self { path, before };
        fs::write(stage.path.join("cgroup.procs"), "0")?;
        Ok(stage)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let left = fs::write(self.before.join("cgroup.procs"), "0").and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = left {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let stage = Stage::enter()?;
    let options =
        Options { cgroup_root: Some(stage.path.clone()), ring_bytes: RING_BYTES, ..Options::default() };
    let mut kernel = Kernel::load(&options)?;
    let record = encode(&abi::FlowRecord { kind: abi::kind::UDP_SENT, ..abi::FlowRecord::default() });
    let (mut drained, mut decoded, mut made) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        made.push(rate(RECORDS, || fill(round as u32 * RECORDS, RECORDS))?);
        let mut taken = 0;
        drained.push(rate(RECORDS, || {
            while kernel.drain(BATCH, &mut |event| {
                taken += u32::from(matches!(black_box(event), Event::Flow(Observation { .. })));
            }) > 0
            {}
            Ok(())
        })?);
        if taken != RECORDS {
            return Err(format!("{taken} records of {RECORDS}, lost {:?}", kernel.losses()).into());
        }
        decoded.push(rate(RECORDS, || {
            let clock = Clock::fixed(0);
            (0..RECORDS).for_each(|_| drop(black_box(decode(black_box(&record), &clock))));
            Ok(())
        })?);
    }
    let wakeups = wakeups(&kernel)?;
    drop(kernel);
    let [one, many] = [1, FOLDS].map(|count| taking(&stage, count));
    let (one, many) = (one?, many?);
    let [drained, decoded, made] = [drained, decoded, made].map(median);
    eprintln!("{:<40} {:>14}", "one core", "per second");
    eprintln!("{:<40} {drained:>14.0}", "records taken out of the ring, decoded");
    eprintln!("{:<40} {decoded:>14.0}", "records decoded from memory");
    eprintln!("{:<40} {made:>14.0}", "records made, by one sender");
    eprintln!("{:<40} {wakeups:>14}", "wake-ups by a ring that was filled once");
    eprintln!("{:<40} {one:>11.1} ms", "taking folded flows, one key");
    eprintln!("{:<40} {many:>11.1} ms", "taking folded flows, 10,000 keys");
    let folds = json!({"one_key_ms": one, "many_keys_ms": many});
    println!(
        "{}",
        json!({"drained": drained, "decoded": decoded, "made": made, "wakeups": wakeups, "folds": folds})
    );
    Ok(())
}

/// Datagrams from one socket, each to a destination of its own, and so a record each. Nobody listens there.
fn fill(first: u32, count: u32) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for n in first..first + count {
        let [_, a, b, c] = n.to_be_bytes();
        let to = SocketAddr::from((Ipv4Addr::new(127, 1 + a, b, c), 9));
        // What an earlier one was answered with is told by a later call.
        let _ = socket.send_to(b"x", to);
    }
    Ok(())
}

/// How often a reader that waits is woken while the ring is filled.
fn wakeups(kernel: &Kernel) -> Result<u32, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fill = || fill(ROUNDS as u32 * RECORDS, RECORDS).map_err(|error| error.to_string());
    runtime.block_on(async {
        let mut filling = tokio::task::spawn_blocking(fill);
        let mut woken = 0;
        loop {
            tokio::select! {
                () = kernel.ready() => woken += 1,
                filled = &mut filling => return filled?.map(|()| woken).map_err(Box::<dyn Error>::from),
            }
        }
    })
}

/// Milliseconds for taking folds of so many keys; the median of some.
fn taking(stage: &Stage, count: u32) -> Result<f64, Box<dyn Error>> {
    let cgroup_root = Some(stage.path.clone());
    let mut kernel = Kernel::load(&Options { cgroup_root, ring_bytes: 4096, ..Options::default() })?;
    // Nobody drains, so that there is no room from here on.
    fill(0, 100)?;
    kernel.take_folded(&mut |_| {})?;
    let mut times = Vec::new();
    for round in 1..=ROUNDS as u32 {
        fill(round * count, count)?;
        let (begun, mut taken) = (Instant::now(), 0);
        kernel.take_folded(&mut |_| taken += 1)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        if taken != count {
            return Err(format!("{taken} folds of {count}").into());
        }
    }
    Ok(median(times))
}

/// Work items per second.
fn rate(items: u32, work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    work()?;
    Ok(f64::from(items) / begun.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
