//! Flows as log records of OpenTelemetry: a real receiver gets each with everything that the flow log says, and one that is down,
//! slow, busy or refuses costs exactly what is counted. And the OpenTelemetry Collector ships the flow log as we tell it to.

mod vector;

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netaudit::{
    audit::{Finding, Flow, FlowId, Privacy, UnenforcedCause, line::Telling},
    report::{
        flow_line,
        otlp::{Otlp, OtlpLosses, Settings, record as record_of},
    },
};
use serde_json::{Value, json};

use crate::{
    audit::{World, a_to_b, deny_egress, egress, ingress},
    sql::python_or_skip,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The receiver, or where it could be.
struct Receiver {
    python: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Receiver {
    fn new(python: PathBuf) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let receiver = Self { python, directory: tempfile::tempdir()?, port, child: None };
        fs::write(receiver.directory.path().join("got"), "")?;
        receiver.set("take")?;
        Ok(receiver)
    }

    fn start(&mut self) -> Result<()> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/otlp/receiver.py");
        let child = Command::new(&self.python)
            .arg(script)
            .args([self.port.to_string(), self.directory.path().display().to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        eventually("receiver", || Ok(std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()))
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn set(&self, mode: &str) -> Result<()> {
        let new = self.directory.path().join("mode.new");
        fs::write(&new, mode)?;
        Ok(fs::rename(new, self.directory.path().join("mode"))?)
    }

    fn got(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.directory.path().join("got"))?;
        text.lines().map(|line| serde_json::from_str(line).context("a line")).collect()
    }

    fn wait_for(&self, count: usize) -> Result<Vec<Value>> {
        eventually("records", || Ok(self.got()?.len() >= count))?;
        self.got()
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            headers: None,
            only_findings: false,
            node: "node-1".to_owned(),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn telling<'a>(world: &'a World, flow: &'a Flow) -> Telling<'a> {
    let cluster = world.auditor.cluster();
    Telling { flow, cluster, node: "node-1", correction: 0, privacy: Privacy::TELLS_ALL }
}

/// Pushes a flow so many times, each with a number of its own.
fn push(otlp: &mut Otlp, world: &World, flow: &Flow, numbers: std::ops::Range<u64>) {
    for sequence in numbers {
        let id = FlowId { sequence, ..flow.id.clone() };
        otlp.push(&telling(world, &Flow { id, ..flow.clone() }));
    }
    otlp.tick();
}

/// What of a line of the flow log is in no attribute, by its path.
fn missing(
    path: &str,
    line: &Value,
    attributes: &Value,
    names: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    match line {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                missing(&path, value, attributes, names)
            })
            .collect(),
        Value::Array(items) if items.is_empty() => Vec::new(),
        value => {
            let Some(name) = names(path) else { return Vec::new() };
            let is_same = attributes[&name] == *value
                // Whole numbers are told as such.
                || attributes[&name].as_f64().is_some_and(|it| Some(it) == value.as_f64());
            if is_same { Vec::new() } else { vec![format!("{path} as {name}: {value}")] }
        }
    }
}

#[test]
fn a_receiver_gets_all_that_the_flow_log_says_by_the_names_that_conventions_have() -> Result<()> {
    let Some(python) = python_or_skip("flows by OTLP", "opentelemetry") else { return Ok(()) };
    let mut receiver = Receiver::new(python)?;
    receiver.start()?;
    let mut world = World::new(vec![deny_egress()]);
    let flows = [
        world.one(a_to_b()),
        world.one(ingress(102, 12, "10.0.0.2:80", "203.0.113.7:40000")),
        world.one(egress(102, 12, "10.0.0.2:40000", "203.0.113.9:443")),
    ];
    let headers = receiver.directory.path().join("headers");
    fs::write(&headers, "# who we are\nX-Token: the-token\n")?;
    let mut otlp = Otlp::open(Settings { headers: Some(headers), ..receiver.settings() })?;
    flows.iter().for_each(|flow| otlp.push(&telling(&world, flow)));
    otlp.tick();
    let got = receiver.wait_for(flows.len())?;
    assert_eq!((otlp.losses(), otlp.failing()), (OtlpLosses::default(), None));
    for (record, flow) in got.iter().zip(&flows) {
        let line = serde_json::to_value(telling(&world, flow).line())?;
        let (own, address) = match line["direction"].as_str() {
            Some("egress") => ("source.address", "destination.address"),
            _ => ("destination.address", "source.address"),
        };
        let names = |path: &str| {
            Some(match path {
                "time" | "protocol" => return None,
                "peer.port" if line["direction"] == "egress" => return None,
                "peer.port" => "source.port".to_owned(),
                "subject.ip" => own.to_owned(),
                "peer.ip" => address.to_owned(),
                "port" => "destination.port".to_owned(),
                "subject.namespace" => "k8s.namespace.name".to_owned(),
                "subject.pod" => "k8s.pod.name".to_owned(),
                "subject.uid" => "k8s.pod.uid".to_owned(),
                "subject.node" => "k8s.node.name".to_owned(),
                "actor.container" => "container.id".to_owned(),
                "actor.pid" => "process.pid".to_owned(),
                "actor.comm" => "process.executable.name".to_owned(),
                path => format!("netaudit.{path}"),
            })
        };
        assert_eq!(missing("", &line, &record["attributes"], &names), [""; 0], "{record:#}\n{line:#}");
        assert_eq!(record["attributes"]["network.transport"], "tcp");
        assert_eq!((&record["path"], &record["token"]), (&json!("/v1/logs"), &json!("the-token")));
        assert_eq!((&record["event"], &record["scope"]), (&json!("netaudit.flow"), &json!("netaudit")));
        assert_eq!(record["resource"]["service.name"], "netaudit");
        assert_eq!(record["time"].as_i64(), Some(flow.observation.at.0));
        assert!(record["observed"].as_u64() > record["time"].as_u64());
    }
    let severities: Vec<&Value> = got.iter().map(|record| &record["severity_text"]).collect();
    assert_eq!(severities, ["ERROR", "INFO", "INFO"], "what passes though it is denied weighs most");
    assert_eq!(got[0]["body"], "shop/a to shop/b TCP/80 (egress): established, denied, unenforced");
    assert_eq!(otlp.finish(PATIENCE), 0);

    // Only what was found.
    let mut otlp = Otlp::open(Settings { only_findings: true, ..receiver.settings() })?;
    flows.iter().for_each(|flow| otlp.push(&telling(&world, flow)));
    assert_eq!(otlp.finish(PATIENCE), 0);
    let found: Vec<Value> = receiver.got()?.split_off(flows.len());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["attributes"]["netaudit.finding"], "unenforced");
    Ok(())
}

#[test]
fn a_receiver_that_is_down_slow_or_busy_loses_nothing_that_is_not_counted() -> Result<()> {
    let Some(python) = python_or_skip("flows by OTLP to nobody", "opentelemetry") else { return Ok(()) };
    let mut receiver = Receiver::new(python)?;
    let mut world = World::new(vec![deny_egress()]);
    let flow = world.one(a_to_b());
    let mut otlp = Otlp::open(receiver.settings())?;

    // Down: what has room waits, the rest is counted, and nobody who pushes waits.
    push(&mut otlp, &world, &flow, 0..1_000);
    eventually("fault", || Ok(otlp.failing().is_some()))?;
    assert_eq!(otlp.losses(), OtlpLosses::default());
    let begun = Instant::now();
    push(&mut otlp, &world, &flow, 1_000..20_000);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let lost = otlp.losses().queue_full;
    assert!(lost > 0 && lost < 19_000, "{lost}");
    assert_eq!(otlp.losses(), OtlpLosses { queue_full: lost, ..OtlpLosses::default() });

    // Back: everything else arrives, once.
    receiver.start()?;
    eventually("all that waited", || Ok(otlp.taken() + lost == 20_000))?;
    let got = receiver.got()?;
    let ids: std::collections::BTreeSet<String> =
        got.iter().map(|record| record["attributes"]["netaudit.flow_id"].to_string()).collect();
    assert_eq!((got.len() as u64, ids.len()), (otlp.taken(), got.len()));
    assert_eq!(otlp.failing(), None);

    // Slow, and busy for a while: late, and whole.
    let before = got.len();
    receiver.set("slow")?;
    push(&mut otlp, &world, &flow, 20_000..21_000);
    receiver.wait_for(before + 1_000)?;
    receiver.set("busy")?;
    push(&mut otlp, &world, &flow, 21_000..21_100);
    eventually("fault", || Ok(otlp.failing().is_some_and(|fault| fault.contains("503"))))?;
    receiver.set("take")?;
    receiver.wait_for(before + 1_100)?;
    eventually("end of the fault", || Ok(otlp.failing().is_none()))?;

    // Refused, in part and whole.
    receiver.set("part")?;
    push(&mut otlp, &world, &flow, 21_100..21_110);
    eventually("rejection", || Ok(otlp.losses().rejected == 1))?;
    assert!(otlp.failing().is_some_and(|fault| fault.contains("one is too many")));
    receiver.set("refuse")?;
    push(&mut otlp, &world, &flow, 21_110..21_120);
    eventually("refusal", || Ok(otlp.losses().refused == 10))?;
    receiver.set("take")?;
    push(&mut otlp, &world, &flow, 21_120..21_121);
    eventually("end of the fault", || Ok(otlp.failing().is_none()))?;
    assert_eq!(otlp.losses(), OtlpLosses { queue_full: lost, refused: 10, rejected: 1 });
    assert_eq!(otlp.taken(), 21_121 - lost - 11);

    // An end with nobody there takes no longer than it may, and says what was not sent.
    receiver.kill();
    push(&mut otlp, &world, &flow, 21_121..21_131);
    let begun = Instant::now();
    assert_eq!(otlp.finish(Duration::from_millis(300)), 10);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    Ok(())
}

/// Flows with all that a flow can weigh.
fn weighed(mut world: World) -> (World, Vec<Flow>) {
    let made = [
        world.one(a_to_b()),
        world.one(ingress(102, 12, "10.0.0.2:80", "203.0.113.7:40000")),
        world.one(egress(1, 0, "192.168.0.1:40000", "203.0.113.9:443")),
    ];
    let findings = [
        None,
        Some(Finding::Unenforced),
        Some(Finding::Blocked),
        Some(Finding::DeniedRefused),
        Some(Finding::Attempted),
        Some(Finding::SuspectedBlock),
    ];
    let causes = [
        UnenforcedCause::NothingEnforces,
        UnenforcedCause::PodJustStarted,
        UnenforcedCause::PolicyJustChanged,
        UnenforcedCause::LabelsJustChanged,
        UnenforcedCause::AddressJustReused,
        UnenforcedCause::OlderConnection,
        UnenforcedCause::OlderThanPolicy,
    ];
    let kinds = findings.map(|finding| (finding, None)).into_iter();
    let kinds = kinds.chain(causes.map(|cause| (Some(Finding::Unenforced), Some(cause))));
    let mut flows: Vec<Flow> = made.to_vec();
    flows.extend(kinds.map(|(finding, cause)| Flow { finding, cause, ..made[0].clone() }));
    for (sequence, flow) in (1..).zip(&mut flows) {
        flow.id.sequence = sequence;
    }
    (world, flows)
}

/// The Collector with the configuration that we ship, reading a file.
fn collector(program: &Path, receiver: &Receiver, log: &Path) -> Result<Ended> {
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/ship/otelcol.yaml");
    let storage = receiver.directory.path().join("storage");
    fs::create_dir_all(&storage)?;
    let said = fs::File::create(receiver.directory.path().join("collector.log"))?;
    let child = Command::new(program)
        .arg("--config")
        .arg(deploy)
        .env("FLOW_LOG", log)
        .env("STORAGE", storage)
        .env("OTLP_ENDPOINT", format!("http://127.0.0.1:{}", receiver.port))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()?;
    Ok(Ended(child))
}

/// A process that ends with the test.
struct Ended(Child);

impl Ended {
    /// As a rollout ends it: what it read it sends, and remembers.
    fn terminate(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_collector_ships_the_flow_log_as_our_configuration_tells_it() -> Result<()> {
    let Some(program) = std::env::var_os("NETAUDIT_OTELCOL").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED the Collector's configuration: no $NETAUDIT_OTELCOL (cargo xtask test builds it, with Go)"
        );
        return Ok(());
    };
    let Some(python) = python_or_skip("the Collector's configuration", "opentelemetry") else {
        return Ok(());
    };
    let mut receiver = Receiver::new(python)?;
    receiver.start()?;
    let (world, flows) = weighed(World::new(vec![deny_egress()]));
    let log = receiver.directory.path().join("flows.jsonl");
    let write = |flows: &[Flow]| -> Result<()> {
        let mut file = fs::File::options().create(true).append(true).open(&log)?;
        for flow in flows {
            let mut line = Vec::new();
            flow_line(&telling(&world, flow), &mut line);
            line.push(b'\n');
            file.write_all(&line)?;
        }
        Ok(())
    };
    let (first, rest) = flows.split_at(5);
    let (second, rest) = rest.split_at(4);
    let (third, last) = rest.split_at(3);
    write(first)?;
    let running = collector(&program, &receiver, &log)?;
    receiver.wait_for(first.len())?;
    // Rotated by moving it away, as the README says.
    let moved = receiver.directory.path().join("flows.jsonl.1");
    fs::rename(&log, &moved)?;
    write(second)?;
    receiver.wait_for(first.len() + second.len())?;
    // It ends, and goes on where it was, though the file has another name by now.
    running.terminate()?;
    write(third)?;
    fs::rename(&log, &moved)?;
    write(last)?;
    let running = collector(&program, &receiver, &log)?;
    let mut got = receiver.wait_for(flows.len())?;
    // Two files are read at once then.
    got.sort_by_key(|record| {
        let id = record["attributes"]["netaudit"]["flow_id"].as_str();
        id.and_then(|id| id.rsplit_once('-')?.1.parse::<u64>().ok())
    });
    thread::sleep(Duration::from_secs(1));
    assert_eq!(receiver.got()?.len(), flows.len(), "each once");
    running.terminate()?;

    for (record, flow) in got.iter().zip(&flows) {
        let ours = record_of(&telling(&world, flow));
        assert_eq!(record["attributes"]["netaudit"]["flow_id"], flow.id.to_string());
        assert_eq!(record["time"].as_u64(), Some(ours.time_unix_nano), "{record:#}");
        assert_eq!(record["severity"].as_i64(), Some(ours.severity_number.into()), "{record:#}");
        // Every name that a convention has is the same as from the agent itself.
        for attribute in ours.attributes.iter().filter(|it| !it.key.starts_with("netaudit.")) {
            let there = &record["attributes"][&attribute.key];
            // The Collector knows no Deployments; who wants them takes netaudit.subject.workload.
            let is_workload = attribute.key.starts_with("k8s.") && attribute.key.ends_with("set.name");
            assert!(is_workload || !there.is_null(), "{}: {record:#}", attribute.key);
        }
    }
    Ok(())
}

#[test]
fn settings_that_cannot_be_right_are_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let headers = directory.path().join("headers");
    fs::write(&headers, "a: b\nAuthorization Bearer secret\n")?;
    let settings = |endpoint: &str, headers: Option<PathBuf>| Settings {
        endpoint: endpoint.to_owned(),
        headers,
        only_findings: false,
        node: "node-1".to_owned(),
    };
    for (settings, says) in [
        (settings("collector:4318", None), "http://collector:4318"),
        (settings("grpc://collector:4317", None), "http://collector:4318"),
        (settings("http://c:1", Some(directory.path().join("none"))), "cannot read the file of headers"),
        (settings("http://c:1", Some(headers)), "line 2 of"),
    ] {
        let error = format!("{:#}", Otlp::open(settings).expect_err("refused"));
        assert!(error.contains(says) && !error.contains("secret\n") && !error.contains("Bearer"), "{error}");
    }
    Ok(())
}
