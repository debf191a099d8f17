//! `netaudit agent`: wires kernel, objects, auditor, metrics and flow log together.
//!
//! One task owns all state. Its loop waits for whatever happens next (a drain is due, an object changed, a scrape asks, a
//! second has passed, the process is told to end) and hands it to a synchronous method; the only `await` is in the `select`.
//! Everything that can block or wait (watches, the HTTP server) is a task of its own that talks to the loop by
//! channels; the agent ends when any of them does.

mod pace;
mod progress;
mod sinks;
mod state;
mod usage_store;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

use crate::{
    cluster::Kind,
    config::{Config, Source},
    http::{self, Readiness, Request},
    kernel::{Kernel, Options},
    privacy,
    publish::{ReportSettings, event_writer, report_writer},
    query,
    report::FlowLog,
    store::Directory,
    watch::{self, Update},
};
use pace::Pace;
use state::{Publishing, State};

/// How often what hangs on time is looked at, or a drain later.
const TICK: Duration = Duration::from_secs(1);

/// How long the API server may take for the last events and reports.
const LAST_PUBLISHING: Duration = Duration::from_millis(300);

/// How long objects wait where the history has no room for more.
const NO_ROOM: Duration = Duration::from_millis(5);

/// Runs the agent until SIGTERM or SIGINT, or until a part of it fails.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // What can fail for good fails before the first program is attached.
    let privacy = privacy::of(&config)?;
    let listener = http::bind(config.listen).await?;
    let flow_log = config
        .flow_log
        .as_deref()
        .map(|target| FlowLog::open(target).with_context(|| format!("cannot open the flow log {target}")))
        .transpose()?;
    let stored = match &config.state_directory {
        Some(path) => {
            let (directory, found) =
                Directory::open(path).context("choose another with --state-directory")?;
            Some((path.clone(), directory, found))
        }
        None => None,
    };
    let options = Options {
        cgroup_root: config.cgroup_root.clone(),
        ring_bytes: config.ring_bytes,
        pin_directory: config.pin_directory.clone(),
        fold_keys: config.fold_keys,
        dns_names: config.dns_names,
        ..Options::default()
    };
    let kernel = Kernel::load(&options)?;

    let (update_sender, mut updates) = mpsc::channel(1_024);
    let (request_sender, mut requests) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(listener, request_sender));
    let mut writers = JoinSet::new();
    let publishing = start_sources(&config, &update_sender, &mut tasks, &mut writers).await?;
    drop(update_sender);

    let drain_interval = config.drain_interval;
    let mut state = State::new(config, privacy, kernel, flow_log, stored, publishing)?;
    state.start(state.now());
    give_back_memory();
    let mut pace = Pace::new(drain_interval);
    let drain = tokio::time::sleep(drain_interval);
    tokio::pin!(drain);
    let mut ticked = Instant::now();

    let ended = loop {
        let has_room = state.has_room();
        tokio::select! {
            () = &mut drain => {
                let taken = state.drain(state.now());
                // With the drain that is next to it: each wake-up of its own would cost more than the work.
                if ticked.elapsed() >= TICK {
                    ticked = Instant::now();
                    state.tick(state.now());
                }
                drain.as_mut().reset(Instant::now() + pace.after(taken));
            }
            () = state.filling() => drop(state.drain(state.now())),
            Some(update) = updates.recv(), if has_room => state.update(update, state.now()),
            () = tokio::time::sleep(NO_ROOM), if !has_room => {}
            Some(request) = requests.recv() => answer(&mut state, request),
            Some(ended) = tasks.join_next() => {
                break ended.context("a part of the agent panicked").flatten().and_then(|()| {
                    anyhow::bail!("a part of the agent ended before the agent was told to")
                });
            }
            Some(ended) = writers.join_next() => break ended.context("a part of the agent ended").and_then(|()| {
                anyhow::bail!("what writes to the API server ended before the agent was told to")
            }),
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        }
    };
    // What is in the ring, held or pending is still written: losing it would not be counted anywhere.
    let now = state.now();
    state.finish(now);
    // With the state they have been told that nothing more will come.
    let written = async { while writers.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_PUBLISHING, written).await.is_err() {
        tracing::warn!("the API server has not taken the last events and reports");
    }
    ended
}

/// What loading took and has let go goes back to the system now: the kernel's type information alone is several megabytes
/// in small pieces.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn answer(state: &mut State, request: Request) {
    // A scraper that went away meanwhile needs no answer.
    match request {
        Request::Metrics(format, answer) => drop(answer.send(state.metrics(format, state.now()))),
        Request::Findings(answer) => drop(answer.send(state.findings(state.now()))),
        Request::Usage(answer) => drop(answer.send(state.usage(state.now()))),
        Request::Readiness(answer) => {
            let readiness = Readiness { missing: state.missing(), degraded: state.degraded() };
            drop(answer.send(readiness));
        }
    }
}

/// Starts what brings objects, and what takes findings to where they come from.
async fn start_sources(
    config: &Config,
    updates: &mpsc::Sender<Update>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    writers: &mut JoinSet<()>,
) -> anyhow::Result<Publishing> {
    let keep = config.flow_store.is_some();
    match &config.source {
        Source::Manifests(dir) => {
            tasks.spawn(watch::files::follow(PathBuf::clone(dir), keep, updates.clone()));
            Ok(Publishing::default())
        }
        Source::Api(kubeconfig) => {
            let client = watch::api::connect(kubeconfig.as_deref()).await?;
            let look_again = config.discover_every;
            for kind in Kind::ALL {
                let (client, updates) = (client.clone(), updates.clone());
                tasks.spawn(async move {
                    watch::api::follow(client, kind, look_again, keep, updates).await;
                    Ok(())
                });
            }
            if let (Some(address), Some(store)) = (config.query_listen, &config.flow_store) {
                let listener = query::bind(address).await?;
                tasks.spawn(query::serve(listener, query::Access::new(client.clone()), store.clone()));
            }
            Ok(start_writers(config, &client, writers))
        }
    }
}

fn start_writers(config: &Config, client: &Client, writers: &mut JoinSet<()>) -> Publishing {
    let events = config.events.then(|| {
        let (queue, writer) = event_writer(client.clone());
        writers.spawn(writer);
        queue
    });
    let reports = config.reports.then(|| {
        let settings = ReportSettings {
            node: config.node.clone(),
            lifetime: config.violation_series_lifetime,
            every: config.reports_every,
            look_again: config.discover_every,
        };
        let (reports, writer) = report_writer(client.clone(), settings);
        writers.spawn(writer);
        reports
    });
    Publishing::new(events, reports, config.reports_every)
}
