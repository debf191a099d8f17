//! `netaudit doctor`: what can be observed on this very kernel and node, and whether it really is.
//!
//! It loads the programs as the agent does, makes connections of its own over loopback, and looks for them in what the
//! programs record. It may run beside an agent: it changes nothing, and what it loads goes when it ends.

pub mod node;
pub mod selftest;
pub mod sensors;

use std::{path::Path, time::Duration};

use serde::Serialize;

use self::{
    node::Fact,
    selftest::{Before, Trial},
    sensors::{SENSORS, Sensor},
};
use crate::kernel::{CostCounter, Feature, Kernel, LoadError, Options, ProgramState};

/// How many connections and datagrams costs are counted by.
const LOAD: u32 = 500;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the node is.
    pub node: Vec<Fact>,
    /// The programs, as far as they could be loaded.
    pub hooks: Vec<Hook>,
    /// What was tried.
    pub trials: Vec<Tried>,
    /// What is seen of what happens.
    pub sensors: Vec<Judged>,
    /// Why costs are not known.
    pub no_costs: Option<String>,
    /// Records that were lost meanwhile.
    pub lost: u64,
}

/// A program.
#[derive(Debug, Serialize)]
pub struct Hook {
    /// Its function.
    pub program: String,
    /// Where it is attached, in the kernel's words.
    pub hook: &'static str,
    /// Whether it is. One that need not be there is not missed.
    pub attached: bool,
    /// Why it is not.
    pub absent: Option<String>,
    /// Runs while costs were counted.
    pub runs: u64,
    /// Nanoseconds of a run; `None` where it did not run.
    pub nanoseconds: Option<f64>,
}

/// A trial, and how it went.
#[derive(Debug, Serialize)]
pub struct Tried {
    /// Which.
    pub trial: Trial,
    /// How it went.
    pub result: selftest::Result,
}

/// What of a sensor holds here.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// The sensor.
    #[serde(flatten)]
    pub sensor: Sensor,
    /// Whether it is attached and was seen to work.
    pub state: State,
}

/// Whether something is seen here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is, and the self-test shows it.
    Works,
    /// As far as it could be tried: some of it could not be, for this reason.
    WorksInPart(String),
    /// It should be, and was not.
    Broken(String),
    /// It could not be tried.
    Untried(String),
    /// Nothing sees it, anywhere.
    Unobservable,
}

impl Report {
    /// Whether something does not work that should.
    pub fn has_findings(&self) -> bool {
        let is_bad = |it: &Judged| matches!(it.state, State::Broken(_));
        self.lost > 0 || self.sensors.iter().any(is_bad) || self.node.iter().any(|it| it.advice.is_some())
    }
}

/// Looks at everything.
///
/// # Errors
///
/// When the programs cannot be loaded: then nothing can be seen here, and the error says why and what to do.
pub fn examine(cgroup_root: Option<&Path>) -> Result<Report, LoadError> {
    let before = Before::open();
    // With what an agent has only where it is told to: whether it works here, and what it costs, is worth knowing before.
    let options =
        Options { cgroup_root: cgroup_root.map(Path::to_owned), dns_names: true, ..Options::default() };
    let mut kernel = Kernel::load(&options)?;
    let mut node = node::facts();
    node.push(node::watched(&kernel));
    if let Err(error) = kernel.scan() {
        let value = format!("incomplete: {error}");
        let advice = Some("give the agent hostPID, and mount the host's /sys/fs/cgroup".to_owned());
        node.push(Fact { name: "scan at the start", value, advice });
    }
    let trials = selftest::run(&mut kernel, &before);
    node.extend(node::blind(&kernel, &trials));
    let counter = CostCounter::start();
    if counter.is_ok()
        && let Err(error) = selftest::load(&mut kernel, LOAD)
    {
        tracing::warn!(%error, "the load by which costs are counted was cut short");
    }
    let hooks = hooks(&kernel);
    let sensors = SENSORS.iter().map(|sensor| judge(*sensor, &hooks, &trials)).collect();
    Ok(Report {
        node,
        hooks,
        trials: trials.into_iter().map(|(trial, result)| Tried { trial, result }).collect(),
        sensors,
        no_costs: counter.err(),
        lost: kernel.losses().iter().map(|loss| loss.count).sum(),
    })
}

fn hooks(kernel: &Kernel) -> Vec<Hook> {
    let absent = |program: &str| {
        let feature = feature_of(program)?;
        kernel.features().iter().find(|it| it.name == feature)?.absent.clone()
    };
    let hook = |ProgramState { name, loaded, runs, time }: ProgramState| Hook {
        hook: hook_of(&name),
        attached: loaded,
        absent: if loaded { None } else { absent(&name) },
        runs,
        nanoseconds: (runs > 0).then(|| per_run(time, runs)),
        program: name,
    };
    // The two that stand in for one another: what is not needed is no gap.
    let is_spare = |hook: &Hook| {
        !hook.attached
            && hook.absent.is_none()
            && matches!(hook.program.as_str(), "on_sent" | "on_sending4" | "on_sending6")
    };
    kernel.programs().into_iter().map(hook).filter(|hook| !is_spare(hook)).collect()
}

fn per_run(time: Duration, runs: u64) -> f64 {
    time.as_nanos() as f64 / runs as f64
}

/// The [`Feature`] that an optional program is for.
fn feature_of(program: &str) -> Option<&'static str> {
    match program {
        "on_sent" | "on_sending4" | "on_sending6" => Some(Feature::UDP_FIRST_DATAGRAM),
        "scan_tasks" => Some(Feature::TASKS),
        "scan_files" => Some(Feature::LISTENERS),
        "on_dropped" => Some(Feature::DROPS),
        "on_error" => Some(Feature::UDP_ERRORS),
        "on_answer" => Some(Feature::DNS_ANSWERS),
        _ => None,
    }
}

fn hook_of(program: &str) -> &'static str {
    match program {
        "on_connect4" => "cgroup/connect4",
        "on_connect6" => "cgroup/connect6",
        "on_sendmsg4" => "cgroup/sendmsg4",
        "on_sendmsg6" => "cgroup/sendmsg6",
        "on_recvmsg4" => "cgroup/recvmsg4",
        "on_recvmsg6" => "cgroup/recvmsg6",
        "on_bind4" => "cgroup/post_bind4",
        "on_bind6" => "cgroup/post_bind6",
        "on_release" => "cgroup/sock_release",
        "on_sock_ops" => "sock_ops",
        "on_cgroup_made" => "raw_tp/cgroup_mkdir",
        "on_cgroup_removed" => "raw_tp/cgroup_rmdir",
        "on_sent" => "tp_btf/sock_send_length",
        "on_dropped" => "tp_btf/kfree_skb",
        "on_error" => "tp_btf/inet_sk_error_report",
        "on_create" => "cgroup/sock_create",
        "on_answer" => "cgroup_skb/ingress",
        "on_sending4" => "fentry/udp_sendmsg",
        "on_sending6" => "fentry/udpv6_sendmsg",
        "scan_tasks" => "iter/task",
        "scan_files" => "iter/task_file",
        _ => "?",
    }
}

fn judge(sensor: Sensor, hooks: &[Hook], trials: &[(Trial, selftest::Result)]) -> Judged {
    let state =
        if sensor.programs.is_empty() { State::Unobservable } else { judge_trials(&sensor, hooks, trials) };
    Judged { sensor, state }
}

fn judge_trials(sensor: &Sensor, hooks: &[Hook], trials: &[(Trial, selftest::Result)]) -> State {
    let missing = hooks.iter().find(|it| !it.attached && sensor.programs.contains(&it.program.as_str()));
    if let Some(hook) = missing {
        let why = hook.absent.as_deref().unwrap_or("not loaded");
        return State::Broken(format!("no {}: {why}", hook.hook));
    }
    if sensor.shown_by.is_empty() {
        return State::Untried(
            "attached; the self-test changes nothing that could make it happen".to_owned(),
        );
    }
    let of_sensor = || trials.iter().filter(|(trial, _)| sensor.shown_by.contains(trial));
    let unseen = of_sensor().find_map(|(trial, result)| match result {
        selftest::Result::Unseen(what) => Some(format!("{}: {what}", trial.what())),
        _ => None,
    });
    if let Some(unseen) = unseen {
        return State::Broken(unseen);
    }
    let not_made = of_sensor().find_map(|(trial, result)| match result {
        selftest::Result::NotMade(why) => Some(format!("{}: {why}", trial.what())),
        _ => None,
    });
    let works = of_sensor().any(|(_, result)| *result == selftest::Result::Works);
    match not_made {
        None => State::Works,
        Some(why) if works => State::WorksInPart(why),
        Some(why) => State::Untried(why),
    }
}

#[cfg(test)]
mod tests;
