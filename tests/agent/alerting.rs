//! One violation, and what the person on call gets: a real agent, Prometheus with the shipped rules, Alertmanager with the
//! shipped routes, and a receiver that is the test itself.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    harness::{World, eventually, kernel_or_skip},
    prometheus::{query, start},
};
use crate::{
    alerts::{programs_or_skip, rules, rules_file, runbook, silence},
    deploy::{deploy, documents},
    lab::{Launch, Process},
};

const ALERTMANAGER: &str = "127.0.0.1:9093";
/// From a connection to the notification: a scrape, an evaluation, the wait for others of the group.
const SOON: Duration = Duration::from_secs(30);
/// Several evaluations and intervals of a group.
const A_WHILE: Duration = Duration::from_secs(10);

/// Where Alertmanager's notifications arrive: the address of the shipped example, in the node's network namespace.
struct Receiver(TcpListener);

impl Receiver {
    fn new(world: &World, address: &str) -> Result<Self> {
        let listener = world.lab.node().enter(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next notification, if one comes `within` this time.
    fn next(&self, within: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + within;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => return read_post(stream).map(Some),
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reads a POST with JSON and says that it has arrived.
fn read_post(mut stream: TcpStream) -> Result<Value> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(A_WHILE))?;
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&received);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).context("no length")?;
            if body.len() >= length.parse::<usize>()? {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
                return serde_json::from_str(body).with_context(|| format!("no JSON: {body}"));
            }
        }
        match stream.read(&mut part)? {
            0 => bail!("a notification that is torn: {text}"),
            length => received.extend_from_slice(&part[..length]),
        }
    }
}

/// The shipped routes, in seconds where they have minutes and hours.
fn alertmanager(world: &World) -> Result<(Process, Receiver)> {
    let mut config = documents(&deploy().join("components/alerts/alertmanager.yaml"))?.remove(0);
    let route = config["route"].as_object_mut().context("a route")?;
    route.insert("group_wait".to_owned(), "2s".into());
    route.insert("group_interval".to_owned(), "1s".into());
    let url = config["receivers"][0]["webhook_configs"][0]["url"].as_str().context("a receiver's address")?;
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let receiver = Receiver::new(world, address)?;
    let path = world.lab.directory().join("alertmanager.yml");
    fs::write(&path, config.to_string())?;
    let arguments = [
        format!("--config.file={}", path.display()),
        format!("--storage.path={}", world.lab.data("alertmanager")?.display()),
        format!("--web.listen-address={ALERTMANAGER}"),
        "--cluster.listen-address=".to_owned(),
    ];
    let process = Launch::new("prometheus-alertmanager", arguments)
        .spawn(&world.lab.host_place("alertmanager")?, &world.lab.log("alertmanager"))?;
    Ok((process, receiver))
}

/// `amtool` or a runbook's line with it, on this Alertmanager.
fn amtool(world: &World, line: &str) -> Result<String> {
    let line = format!("{line} --alertmanager.url=http://{ALERTMANAGER}");
    let output =
        Launch::new("sh", ["-c", &line]).run(&world.lab.host_place("amtool")?, Duration::from_secs(10))?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn one_violation_is_told_once_with_who_what_when_and_the_policy() -> Result<()> {
    let test = "from a violation to a notification";
    if !kernel_or_skip(test) || !programs_or_skip(test, &["prometheus", "prometheus-alertmanager", "amtool"])
    {
        return Ok(());
    }
    let world = World::new("alerting")?;
    world.deny_all()?;
    let (_server, _second) = (world.serve_on(8080)?, world.serve_on(8081)?);
    let _agent = world.agent()?;
    let (mut alertmanager, receiver) = alertmanager(&world)?;
    let mut prometheus = start(
        &world,
        json!({
            "rule_files": [rules_file()],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
        }),
    )?;
    eventually("the agent is scraped", || {
        prometheus.check()?;
        let answer = query(&world, "up{job=\"netaudit\"} == 1").unwrap_or_default();
        Ok(answer["data"]["result"][0].is_object())
    })?;
    eventually("Alertmanager answers", || {
        alertmanager.check()?;
        Ok(amtool(&world, "amtool config show").is_ok())
    })?;
    assert_eq!(receiver.next(Duration::ZERO)?, None, "nothing has happened yet");

    world.connect(1)?;
    let first = receiver.next(SOON)?.context("no notification of a violation")?;
    check_first(&world, &first)?;
    if let Some(again) = receiver.next(A_WHILE)? {
        bail!("one violation was told twice: {again:#}");
    }

    // The same workload on another port: told too, and in the same group.
    world.connect_to(8081, 1)?;
    let second = receiver.next(SOON)?.context("no notification of the second violation")?;
    assert_eq!(second["groupKey"], first["groupKey"]);
    let alerts = second["alerts"].as_array().context("alerts")?;
    let ports: Vec<&str> = alerts.iter().filter_map(|alert| alert["labels"]["port"].as_str()).collect();
    assert_eq!(ports.len(), 2, "{second:#}");
    assert!(ports.contains(&"8080") && ports.contains(&"8081"), "{ports:?}");

    check_silences(&world)?;
    prometheus.terminate(Duration::from_secs(20))?;
    alertmanager.terminate(Duration::from_secs(20))
}

/// What somebody on call reads.
fn check_first(world: &World, notification: &Value) -> Result<()> {
    assert_eq!(notification["status"], "firing");
    let alerts = notification["alerts"].as_array().context("alerts")?;
    assert_eq!(alerts.len(), 1, "{notification:#}");
    let alert = &alerts[0];
    let name = alert["labels"]["alertname"].as_str().context("a name")?;
    // Which of the three depends on how long ago the pods started and the policies came.
    assert!(name.starts_with("NetauditUnenforced"), "{name}");
    let group = json!({"alertname": name, "source_namespace": "shop", "source_workload": "client"});
    assert_eq!(notification["groupLabels"], group);
    let text = alert["annotations"]["description"].as_str().context("a description")?;
    for part in ["shop/client", "shop/server", "TCP port 8080", "NetworkPolicy/shop/deny", "(ingress)"] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    let flows = world.flows()?;
    let flow =
        flows.iter().find(|flow| flow["finding"] == "unenforced").context("no violation in the flow log")?;
    let happened = flow["time"].as_str().context("a time")?;
    let (date, time) = happened.split_once('T').context("no T in a time")?;
    let told = text.split_once(&format!("{date} ")).with_context(|| format!("no {date} in: {text}"))?.1;
    let apart = seconds(time)? - seconds(told)?;
    assert!(apart.abs() <= 1, "it happened at {happened}, and told is: {text}");
    Ok(())
}

/// Seconds of the day of a text that begins with `HH:MM:SS`.
fn seconds(time: &str) -> Result<i64> {
    let parts = time.get(..8).context("a short time")?.split(':');
    parts.map(str::parse::<i64>).try_fold(0, |sum, part| Ok(sum * 60 + part?))
}

/// Every runbook's command makes a silence that has an owner, a reason and an end.
fn check_silences(world: &World) -> Result<()> {
    let rules = rules()?;
    for rule in &rules {
        let page = runbook(rule["alert"].as_str().context("a name")?)?;
        amtool(world, silence(&page)?)?;
    }
    let silences: Value = serde_json::from_str(&amtool(world, "amtool silence query --output=json")?)?;
    let silences = silences.as_array().context("silences")?;
    assert_eq!(silences.len(), rules.len());
    for silence in silences {
        assert!(silence["createdBy"] == "OWNER" && silence["comment"] != "", "{silence}");
        assert!(silence["endsAt"].as_str() > silence["startsAt"].as_str(), "{silence}");
    }
    Ok(())
}
