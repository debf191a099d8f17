//! The flow store of a real agent: what it holds is what the flow log says, whatever ends the agent.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::harness::{NETAUDIT, PATIENCE, World, kernel_or_skip};
use crate::lab::{BpfFs, Launch, Process};

const SECOND: Duration = Duration::from_secs(1);

struct Stored {
    world: World,
    directory: PathBuf,
    pins: Option<BpfFs>,
}

impl Stored {
    fn new(purpose: &str) -> Result<Self> {
        let world = World::new(purpose)?;
        world.deny_all()?;
        let directory = world.lab.directory().join("flows");
        Ok(Self { world, directory, pins: None })
    }

    fn agent(&self) -> Result<Process> {
        let mut arguments = self.world.arguments();
        arguments.extend(["--flow-store".to_owned(), self.directory.display().to_string()]);
        if let Some(pins) = &self.pins {
            arguments.extend(["--pin-directory".to_owned(), pins.pins().display().to_string()]);
        }
        self.world.agent_by(&Launch::new(NETAUDIT, arguments))
    }

    /// Exit status, answer and what is said beside it of `netaudit flows` with these arguments.
    fn ask(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let store = self.directory.display().to_string();
        let arguments: Vec<&str> = ["flows", &store].into_iter().chain(arguments.iter().copied()).collect();
        let output = Launch::new(NETAUDIT, arguments).run(&self.world.agent_place()?, PATIENCE)?;
        let text = |bytes| String::from_utf8(bytes).context("no text");
        Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
    }

    /// All flows of the store.
    fn flows(&self) -> Result<Vec<Value>> {
        let (status, text, errors) = self.ask(&["--output", "json"])?;
        ensure!(status == Some(0), "{errors}");
        text.lines().map(|line| serde_json::from_str(line).context("a line")).collect()
    }

    /// Waits until both the log and the store hold so many flows.
    fn wait_for(&self, count: usize) -> Result<()> {
        self.world.wait_for_flows("flows", |flows| flows.len() >= count)?;
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.flows()?.len() < count {
            ensure!(std::time::Instant::now() < deadline, "{} of {count} in the store", self.flows()?.len());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// What the flow log holds the store does soon, each flow once and in the same words.
    fn holds_what_was_logged(&self) -> Result<usize> {
        let mut logged = self.world.flows()?;
        logged.iter_mut().for_each(to_microseconds);
        self.wait_for(logged.len())?;
        let mut stored = self.flows()?;
        let id = |flow: &Value| flow["flow_id"].to_string();
        let ids: std::collections::BTreeSet<String> = logged.iter().map(id).collect();
        stored.retain(|flow| ids.contains(&id(flow)));
        for flows in [&mut logged, &mut stored] {
            flows.sort_by_key(id);
        }
        assert_eq!(stored.len(), logged.len());
        for (stored, logged) in stored.iter().zip(&logged) {
            assert_eq!(stored, logged);
        }
        Ok(logged.len())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory.join("flows")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_dir() { directories.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Times as the store keeps them.
fn to_microseconds(flow: &mut Value) {
    for name in ["time", "last_time", "open_since"] {
        if let Some(Value::String(time)) = flow.get_mut(name) {
            let end = time.len() - "000Z".len();
            time.replace_range(end.., "000Z");
        }
    }
    if let Some(waited) = flow["waited_seconds"].as_f64() {
        flow["waited_seconds"] = ((waited * 1e6).floor() / 1e6).into();
    }
}

#[test]
fn the_store_holds_what_the_flow_log_says_in_the_same_words() -> Result<()> {
    if !kernel_or_skip("flow store") {
        return Ok(());
    }
    let it = Stored::new("stored")?;
    let _server = it.world.serve()?;
    let mut agent = it.agent()?;
    it.world.connect(3)?;
    // Nobody listens there.
    it.world.connect_to(8081, 1).expect_err("refused");
    it.wait_for(7)?;
    // While it is written.
    let count = it.holds_what_was_logged()?;

    let (status, text, said) = it.ask(&["--count", "--require-complete"])?;
    assert!(status == Some(0) && text.trim().parse::<usize>()? >= count, "{said}");
    assert!(said.contains("complete: no record was lost on"), "{said}");
    let (_, text, _) =
        it.ask(&["--count", "--verdict", "denied", "--direction", "ingress", "--port", "8080"])?;
    assert_eq!(text.trim(), "3");
    let (_, text, _) = it.ask(&["--top", "subject,port,outcome", "--direction", "egress"])?;
    assert!(text.contains("3  shop/client  TCP/8080  established"), "{text}");
    let (_, text, _) =
        it.ask(&["--pod", &format!("shop/{}", it.world.server_name()), "--outcome", "refused", "--count"])?;
    assert_ne!(text.trim(), "0");
    let (_, text, _) = it.ask(&["--policy", "shop/deny", "--direction", "ingress", "--limit", "1"])?;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("denied"), "{text}");
    let flow = it.flows()?.remove(0);
    let id = flow["flow_id"].as_str().context("an id")?;
    let store = it.directory.display().to_string();
    let why = |id: &str| {
        Launch::new(NETAUDIT, ["why", id, "--flow-store", &store]).run(&it.world.agent_place()?, PATIENCE)
    };
    let output = why(id)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.contains(id),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = why("run-99999999")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no flow run-99999999 in"), "{said}");
    let (status, text, said) = it.ask(&["--output", "csv"])?;
    assert!(status == Some(0) && text.lines().count() > count, "{said}");

    // Whoever follows is shown each new one once.
    let log = it.world.lab.log("follow");
    let arguments = [
        "flows",
        &store,
        "--follow",
        "--last",
        "0",
        "--output",
        "json",
        "--direction",
        "ingress",
        "-n",
        "shop",
    ];
    let mut follow = Launch::new(NETAUDIT, arguments).spawn(&it.world.agent_place()?, &log)?;
    let shown = || -> usize {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("{\"time\"")).count()
    };
    follow.wait_until(PATIENCE, "what is missing said", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("no record was lost"))
    })?;
    for round in 1..=3 {
        it.world.connect(2)?;
        follow.wait_until(PATIENCE, "new flows", || shown() >= round * 2)?;
    }
    std::thread::sleep(2 * SECOND);
    assert_eq!(shown(), 6, "{}", fs::read_to_string(&log)?);
    drop(follow);

    agent.terminate(2 * SECOND)?;
    // What is left is rolled by the next run.
    let mut agent = it.agent()?;
    agent.wait_until(PATIENCE, "a Parquet file", || it.files().is_ok_and(|files| !files.is_empty()))?;
    assert!(it.holds_what_was_logged()? >= count);
    let (_, text, said) = it.ask(&["--count"])?;
    assert!(text.trim().parse::<usize>()? >= count, "{said}");
    assert!(said.contains("nothing was recorded on"), "the time between the two runs: {said}");
    agent.terminate(2 * SECOND)?;
    Ok(())
}

#[test]
fn a_kill_loses_nothing_and_the_next_run_goes_on() -> Result<()> {
    if !kernel_or_skip("flow store after a kill") {
        return Ok(());
    }
    let mut it = Stored::new("killed")?;
    it.pins = Some(BpfFs::mount()?);
    let _server = it.world.serve()?;
    let agent = it.agent()?;
    it.world.connect(20)?;
    it.wait_for(40)?;
    it.world.connect(20)?;
    // Dropping kills.
    drop(agent);
    it.world.connect(20)?;
    let mut agent = it.agent()?;
    it.wait_for(120)?;
    let flows = it.flows()?;
    let is_new = |flow: &&Value| flow["maybe_repeated"] != true && flow["subject"]["kind"] == "pod";
    let new = flows.iter().filter(is_new).count();
    assert!(new <= 120 && flows.len() >= 120, "{new} of {}", flows.len());
    let (status, _, said) = it.ask(&["--count", "--require-complete"])?;
    assert_eq!(status, Some(0), "{said}");
    agent.terminate(2 * SECOND)?;
    Ok(())
}
