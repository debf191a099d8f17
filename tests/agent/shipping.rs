//! What an agent ships, and what it leaves out: each by its configuration, and none of it in anybody's way.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::harness::{NETAUDIT, World, eventually, kernel_or_skip};
use crate::{command::self_signed, lab::Launch, sql::python_or_skip};

const SECOND: Duration = Duration::from_secs(1);

/// A receiver of OTLP on the node.
struct Receiver {
    /// The directory of what it got.
    got: PathBuf,
    port: u16,
    launch: Launch,
}

fn receiver(world: &World, python: &Path, mode: &str, tls: &[&Path]) -> Result<Receiver> {
    let got = world.lab.directory().join("received");
    fs::create_dir(&got)?;
    fs::write(got.join("got"), "")?;
    fs::write(got.join("mode"), mode)?;
    // Free in the test's own namespace, and so most likely in the node's, in which few listen.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/otlp/receiver.py");
    let mut arguments = vec![script.display().to_string(), port.to_string(), got.display().to_string()];
    arguments.extend(tls.iter().map(|file| file.display().to_string()));
    Ok(Receiver { got, port, launch: Launch::new(python, arguments) })
}

#[test]
fn flows_are_sent_by_otlp_without_what_is_not_told() -> Result<()> {
    if !kernel_or_skip("an agent's OTLP") {
        return Ok(());
    }
    let Some(python) = python_or_skip("an agent's OTLP", "opentelemetry") else { return Ok(()) };
    let world = World::new("otlp")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let Receiver { got, port, launch: receiver } = receiver(&world, &python, "refuse", &[])?;
    let key = world.lab.directory().join("key");
    fs::write(&key, "0123456789abcdef0123456789abcdef")?;
    let mut arguments = world.arguments();
    arguments.extend([
        format!("--otlp-endpoint=http://127.0.0.1:{port}"),
        format!("--hash-key={}", key.display()),
        "--omit-processes".to_owned(),
    ]);
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;

    // Nobody is there yet: said, and nothing else suffers.
    world.connect(2)?;
    let degraded = |says: &str| -> Result<bool> { Ok(world.get("/readyz")?.1.contains(says)) };
    eventually("a fault", || degraded("flows are not sent by OTLP"))?;
    assert_eq!(world.get("/readyz")?.0, 200);
    let mut receiver = receiver.spawn(&world.agent_place()?, &world.lab.log("receiver"))?;
    // Refused, which is counted.
    let refused = r#"netaudit_records_lost_total{stage="otlp",cause="refused""#;
    eventually("a refusal", || Ok(world.metric_sum(refused)? > 0.0))?;
    fs::write(got.join("mode"), "take")?;
    world.connect(3)?;
    let received = || -> Result<Vec<Value>> {
        let text = fs::read_to_string(got.join("got"))?;
        text.lines().map(|line| serde_json::from_str(line).context("a line")).collect()
    };
    eventually("the flows of both ends", || Ok(received()?.len() >= 6))?;
    let logged = world.wait_for_flows("all", |flows| flows.len() >= 10)?;
    for record in received()? {
        let id = &record["attributes"]["netaudit.flow_id"];
        let flow = logged.iter().find(|flow| flow["flow_id"] == *id).context("a flow of the log")?;
        assert_eq!(record["attributes"]["netaudit.verdict"], flow["verdict"]);
        assert_eq!(record["resource"]["k8s.node.name"], flow["subject"]["node"]);
        assert_eq!((&flow["actor"]["comm"], &flow["actor"]["pid"]), (&"".into(), &0.into()));
        assert!(record["attributes"]["process.executable.name"].is_null());
    }
    eventually("the end of the fault", || degraded("flows are not sent").map(|is| !is))?;
    agent.terminate(2 * SECOND)?;
    receiver.terminate(2 * SECOND)?;
    Ok(())
}

/// Flows go to nobody whose certificate is not known.
#[test]
fn flows_are_sent_by_otlp_over_tls_to_a_receiver_whose_certificate_is_known() -> Result<()> {
    if !kernel_or_skip("an agent's OTLP over TLS") {
        return Ok(());
    }
    let Some(python) = python_or_skip("an agent's OTLP over TLS", "opentelemetry") else { return Ok(()) };
    let world = World::new("otlps")?;
    let _server = world.serve()?;
    let [certificate, key, other] =
        ["cert.pem", "key.pem", "other.pem"].map(|name| world.lab.directory().join(name));
    self_signed(&other, &key)?;
    self_signed(&certificate, &key)?;
    let Receiver { got, port, launch } = receiver(&world, &python, "take", &[&certificate, &key])?;
    let mut receiver = launch.spawn(&world.agent_place()?, &world.lab.log("receiver"))?;
    let mut arguments = world.arguments();
    arguments.push(format!("--otlp-endpoint=https://127.0.0.1:{port}"));
    let agent = |trusted: &Path| {
        let launch = Launch::new(NETAUDIT, arguments.clone());
        world.agent_by(
            &launch.env("SSL_CERT_FILE", trusted.display().to_string()).env("SSL_CERT_DIR", "/nonexistent"),
        )
    };
    let received = || -> Result<usize> { Ok(fs::read_to_string(got.join("got"))?.lines().count()) };

    let mut strict = agent(&other)?;
    world.connect(2)?;
    world.wait_for_flows("flows", |flows| flows.len() >= 4)?;
    let is_told = || Ok(world.get("/readyz")?.1.contains("certificate"));
    eventually("a refusal of the certificate", is_told)?;
    assert_eq!(received()?, 0, "nothing was told to whom nobody vouches for");
    strict.terminate(2 * SECOND)?;

    let mut agent = agent(&certificate)?;
    world.connect(3)?;
    eventually("the flows of both ends", || Ok(received()? >= 6))?;
    assert!(!world.get("/readyz")?.1.contains("flows are not sent by OTLP"));
    agent.terminate(2 * SECOND)?;
    receiver.terminate(2 * SECOND)?;
    Ok(())
}

#[test]
fn what_cannot_be_uploaded_waits_and_shows() -> Result<()> {
    if !kernel_or_skip("an agent's bucket") {
        return Ok(());
    }
    let world = World::new("bucket")?;
    let _server = world.serve()?;
    let store = world.lab.directory().join("store");
    let mut arguments = world.arguments();
    arguments
        .extend([format!("--flow-store={}", store.display()), "--flow-bucket=s3://flows/test".to_owned()]);
    // Nobody listens there.
    let launch = Launch::new(NETAUDIT, arguments)
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "the-secret");
    let mut agent = world.agent_by(&launch)?;
    world.connect(2)?;
    world.wait_for_flows("flows", |flows| flows.len() >= 4)?;
    agent.terminate(2 * SECOND)?;
    // What the last run left is rolled, and should be uploaded.
    let mut agent = world.agent_by(&launch)?;
    eventually("a file that waits", || Ok(world.metric("netaudit_flow_bucket_waiting_files")? > Some(0.0)))?;
    eventually("a failure", || Ok(world.metric("netaudit_flow_bucket_failures_total")? > Some(0.0)))?;
    assert!(world.metric("netaudit_flow_bucket_oldest_waiting_timestamp_seconds")? > Some(1e9));
    assert!(world.metric("netaudit_flow_bucket_waiting_bytes")? > Some(0.0));
    let (status, text) = world.get("/readyz")?;
    assert!(status == 200 && text.contains("files of the flow store are not uploaded"), "{status} {text}");
    assert!(!text.contains("the-secret"), "{text}");
    agent.terminate(2 * SECOND)?;
    Ok(())
}
