//! `cargo xtask bench`: what the agent costs the programs that it watches, and how fast it is itself.
//!
//! Overhead: the same load with and without the agent, interleaved round by round in one run, as ratios of the medians with
//! the quartiles of the rounds' own ratios, since a machine that others use too is noisy. Speed: the pipeline benchmark of the netaudit
//! crate. Both as a table, and as JSON in `target/bench.json`. `cargo xtask bench policy` is about the evaluator alone.

mod plot;
pub mod policy;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::{
    account::record::Metrics,
    build_ebpf::build_ebpf,
    http,
    lab::{Lab, Launch, NODE_NAME, Owner, Pod, PodSpec, Process, Qos},
    process::{cargo, run},
    setup::setup,
    tools::target,
};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of the benchmark.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Interleaved rounds of the overhead measurement
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
}

#[derive(Clone, Copy, clap::Subcommand)]
enum Part {
    /// Policies alone: how fast they are compiled and asked, beside another engine (needs no root)
    Policy,
}

/// A load that is measured.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Load {
    /// TCP connect, accept and close, both ends.
    Connect,
    /// TCP connect to a closed port.
    Refused,
    /// A UDP datagram there and one back, between the same two sockets.
    UdpRoundTrip,
    /// A UDP datagram there and one back from a new socket each time, as a resolver does.
    UdpNewSocket,
}

/// Each load, and how often a round repeats it.
const LOADS: [(Load, u32); 4] = [
    (Load::Connect, 4_000),
    (Load::Refused, 8_000),
    (Load::UdpRoundTrip, 20_000),
    (Load::UdpNewSocket, 8_000),
];

impl Load {
    /// The name that the command line knows it by.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Runs both parts, or the one that was asked for.
pub fn bench(root: &Path, options: &Options) -> Result<()> {
    if let Some(Part::Policy) = options.part {
        return policy::bench(root);
    }
    setup(root)?;
    build_ebpf(root)?;
    run(&mut cargo(root, ["build", "--release", "--locked", "-p", "netaudit"]))?;
    let overhead = overhead(&target(root).join("release/netaudit"), options.rounds)?;
    println!("bench: the agent's own speed");
    let output = cargo(root, ["bench", "--locked", "-p", "netaudit", "--bench", "pipeline"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the pipeline benchmark failed");
    let speed: Value = serde_json::from_slice(&output.stdout).context("the pipeline benchmark's JSON")?;
    let path = target(root).join("bench.json");
    std::fs::write(&path, format!("{:#}\n", json!({"overhead": overhead, "speed": speed})))?;
    println!("bench: also in {}", path.display());
    Ok(())
}

struct Rounds {
    without: Vec<f64>,
    with: Vec<f64>,
}

fn overhead(agent: &Path, rounds: u8) -> Result<Value> {
    let mut lab = Lab::new("bench")?;
    let pod = lab.add_pod(
        PodSpec {
            namespace: "bench",
            name: "load-5d8f7b9c6-x7k2p",
            labels: &[("app", "load")],
            owner: Owner::Deployment("load", "5d8f7b9c6"),
            qos: Qos::Burstable,
            container: "main",
            ports: &[],
        },
        Ipv4Addr::new(10, 96, 0, 10),
    )?;
    lab.write_manifests()?;
    println!("bench: overhead, {rounds} interleaved rounds of each load with and without the agent");
    let mut measured = LOADS.map(|_| Rounds { without: Vec::new(), with: Vec::new() });
    let mut lost = 0.0;
    for round in 0..rounds {
        // Which side comes first alternates, so that warming up favours neither.
        for with in [round % 2 == 0, round % 2 == 1] {
            let mut running = with.then(|| start(&lab, agent)).transpose()?;
            for ((load, count), rounds) in LOADS.iter().zip(&mut measured) {
                let seconds = once(&pod, *load, *count, round)?;
                let side = if with { &mut rounds.with } else { &mut rounds.without };
                side.push(seconds / f64::from(*count) * 1e6);
            }
            if let Some(agent) = &mut running {
                lost += records_lost(&lab)?;
                agent.terminate(PATIENCE)?;
            }
        }
    }
    println!("{:<16} {:>12} {:>12} {:>8}   {:>16}", "µs each", "without", "with", "ratio", "quartiles");
    let mut results = serde_json::Map::new();
    for ((load, _), rounds) in LOADS.iter().zip(&measured) {
        let name = load.name();
        let (without, with) = (quantile(&rounds.without, 0.5), quantile(&rounds.with, 0.5));
        let ratios: Vec<f64> =
            rounds.with.iter().zip(&rounds.without).map(|(with, without)| with / without).collect();
        let (low, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.75));
        let ratio = with / without;
        println!("{name:<16} {without:>12.2} {with:>12.2} {ratio:>8.3}   {low:>7.3} … {high:.3}");
        results.insert(
            name,
            json!({"without_us": without, "with_us": with, "ratio": ratio, "quartiles": [low, high]}),
        );
    }
    println!("records lost: {lost}");
    results.insert("records_lost".to_owned(), json!(lost));
    Ok(Value::Object(results))
}

fn start(lab: &Lab, agent: &Path) -> Result<Process> {
    let arguments = [
        "agent".to_owned(),
        "--manifests".to_owned(),
        lab.manifests().display().to_string(),
        "--cgroup-root".to_owned(),
        lab.node_cgroup().display().to_string(),
        "--listen".to_owned(),
        LISTEN.to_string(),
        "--node".to_owned(),
        NODE_NAME.to_owned(),
    ];
    let place = lab.host_place("netaudit")?;
    let mut agent = Launch::new(agent, arguments).spawn(&place, &lab.log("netaudit"))?;
    agent.wait_until(PATIENCE, "ready", || {
        http::get(lab.node(), LISTEN, "/readyz").is_ok_and(|(status, _)| status == 200)
    })?;
    Ok(agent)
}

fn records_lost(lab: &Lab) -> Result<f64> {
    let (_, metrics) = http::get(lab.node(), LISTEN, "/metrics")?;
    Ok(Metrics::parse(&metrics)?.sum("netaudit_records_lost_total"))
}

/// Runs one load in the pod, by this very program, and returns its seconds.
fn once(pod: &Pod, load: Load, count: u32, round: u8) -> Result<f64> {
    let program = std::env::current_exe()?;
    let arguments = ["load".to_owned(), load.name(), count.to_string(), round.to_string()];
    let output = Launch::new(program, arguments).run(&pod.place, PATIENCE)?;
    if !output.status.success() {
        bail!("the load {} failed: {}", load.name(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// The load itself, in the process that [`once`] starts: prints the seconds that it took.
pub fn load(load: Load, count: u32, round: u8) -> Result<()> {
    // Another address each round: the ports of the last one are still in TIME_WAIT.
    let ip = Ipv4Addr::new(127, 0, 1, round.wrapping_add(1).max(1));
    let seconds = match load {
        Load::Connect => connect(ip, count)?,
        Load::Refused => {
            let closed = TcpListener::bind((ip, 0))?.local_addr()?;
            timed(|| {
                (0..count).try_for_each(|_| match TcpStream::connect(closed) {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                    Err(error) => Err(error.into()),
                    Ok(_) => bail!("{closed} is not closed"),
                })
            })?
        }
        Load::UdpRoundTrip | Load::UdpNewSocket => udp(ip, count, matches!(load, Load::UdpNewSocket))?,
    };
    println!("{seconds}");
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn connect(ip: Ipv4Addr, count: u32) -> Result<f64> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || (0..count).try_for_each(|_| listener.accept().map(drop)));
    let seconds = timed(|| {
        for _ in 0..count {
            let mut stream = TcpStream::connect(address)?;
            // The server closes first; waiting for that keeps one connection at a time.
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    })?;
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(seconds)
}

fn udp(ip: Ipv4Addr, count: u32, new_socket: bool) -> Result<f64> {
    let server = UdpSocket::bind((ip, 0))?;
    let address = server.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 16];
        for _ in 0..count {
            let (length, from) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..length], from)?;
        }
        Ok(())
    });
    let client = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((ip, 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let kept = client()?;
    let seconds = timed(|| {
        for _ in 0..count {
            let fresh = if new_socket { Some(client()?) } else { None };
            let socket = fresh.as_ref().unwrap_or(&kept);
            socket.send(b"ping")?;
            socket.recv(&mut [0; 16])?;
        }
        Ok(())
    })?;
    echo.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    std::io::stdout().flush()?;
    Ok(seconds)
}
