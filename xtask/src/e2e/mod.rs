//! `cargo xtask e2e`: netaudit from its own image on a real cluster of two nodes, one long scenario.
//!
//! First nobody enforces, so that everything that is forbidden passes and must be told; then a real enforcer comes. After
//! each phase the flow logs of all agents are compared with what was driven, one by one.

mod apps;
mod batchivo;
mod cost;
mod driven;
mod faults;
mod kinds;
mod lives;
mod outside;
mod prometheus;
mod removal;
mod rights;
mod services;
mod starts;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::{batchivo::Apps, world::World};
use crate::{
    cluster::{self, Cluster, Enforcer, Proxy},
    dist::Built,
    tools::Tools,
};

/// How long the API server is gone.
const OUTAGE: Duration = Duration::from_secs(60);

/// How to run the scenario.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Options {
    /// Leave the cluster at the end, also after a failure, for `cargo xtask cluster` to look at and remove
    #[arg(long)]
    keep: bool,
    /// Run only these phases of it
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Phase>,
}

/// A part of the scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Phase {
    /// Starts of a cluster that go wrong
    Starts,
    /// The example deployment, unenforced
    Batchivo,
    /// Services of every kind
    Services,
    /// How pods come and go
    Lives,
    /// The least rights
    Rights,
    /// Changes and faults under traffic
    Faults,
    /// The example deployment, enforced
    Enforcer,
    /// What the agent costs; only where it is named
    Cost,
}

/// Runs the scenario with the image that `dist` built.
pub fn run(root: &Path, built: &Built, options: &Options) -> Result<()> {
    // One that somebody works with is not ours to remove.
    cluster::make_room()?;
    let result = scenario(root, built, options);
    if options.keep {
        println!("e2e: the cluster stays: `cargo xtask cluster status`, `cargo xtask cluster down`");
        return result;
    }
    // A failure of the scenario says more than one of its clean-up.
    let down = cluster::down();
    result.and(down)
}

fn scenario(root: &Path, built: &Built, options: &Options) -> Result<()> {
    let begun = Instant::now();
    let step = |what: &str| println!("[{:6.1} s] {what}", begun.elapsed().as_secs_f64());
    let wants = |phase| options.only.is_empty() || options.only.contains(&phase);
    let deploy = root.join("deploy").to_string_lossy().into_owned();
    let policies = root.join("deploy/examples/batchivo");
    // A start that is given a minute must not be building Kubernetes.
    Cluster::build_programs()?;
    if wants(Phase::Starts) {
        step("starts that go wrong");
        starts::faults()?;
    }

    let tools = Tools::find(root)?;
    let shares: Vec<(PathBuf, PathBuf)> =
        [("traefik", &tools.traefik), ("weed", &tools.weed), ("netaudit", &built.program)]
            .map(|(name, path)| (path.clone(), Path::new(apps::PROGRAMS).join(name)))
            .into();
    step("a cluster of two nodes, nobody enforces");
    let up = cluster::Options { nodes: 2, enforcer: Enforcer::None, proxy: Proxy::Nftables };
    let mut world = World::new(Cluster::up(&up, &shares)?);
    outside::start(&world.cluster.outside)?;

    step("netaudit from its image: kubectl apply -k deploy/");
    let pinned = removal::pinned(&world)?;
    kinds::install(&world)?;
    world.cluster.import(&built.archive)?;
    world.kubectl(&["apply", "-k", &deploy])?;
    world.rollout()?;
    step("under its own seccomp profile, as all that follows");
    rights::seccomp(&world, root)?;
    step("with a flow log: a rolling update");
    let mut arguments = world.agent_arguments()?;
    arguments.push("--flow-log=-".to_owned());
    world.set_agent_arguments(&arguments)?;

    step("Batchivo's applications and the seven policies");
    let postgres_programs = tools.postgres.to_string_lossy().into_owned();
    world.cluster.apply(&apps::batchivo(&postgres_programs, user_of("postgres")?)?)?;
    world.wait_for_pods(&["batchivo", "traefik", "shop"])?;
    let mut apps = Apps::find(&world, &postgres_programs)?;
    world.kubectl(&["apply", "-k", &policies.to_string_lossy()])?;
    world.wait_for_policy("backend-policy", &["node1"])?;
    world.wait_for_policy("postgres-policy", &["node2"])?;
    world.forget()?;

    if wants(Phase::Batchivo) {
        batchivo::verification(&world)?;
        step("what they allow");
        batchivo::allowed(&mut world, &apps)?;
        world.compare("allowed")?;
        step("what they forbid; it passes");
        batchivo::unenforced(&mut world, &apps)?;
        batchivo::admin_jobs(&mut world, &apps, false)?;
        world.compare("forbidden, unenforced")?;
        batchivo::nothing_enforces(&mut world, &apps)?;
        step("the optional eighth policy");
        let eighth = policies.join("60-admin-jobs-policy.yaml").to_string_lossy().into_owned();
        world.kubectl(&["apply", "-f", &eighth])?;
        world.wait_for_policy("admin-jobs-policy", &["node2"])?;
        batchivo::admin_jobs(&mut world, &apps, true)?;
        world.compare("the eighth")?;
        // The other phases know of seven.
        world.kubectl(&["delete", "-f", &eighth])?;
        step("Prometheus tells the same");
        prometheus::start(&world)?;
        prometheus::compare(&mut world, "batchivo/admin-jobs-policy ")?;
    }
    step("pods for the rest");
    let webs = services::set_up(&world)?;
    world.forget()?;
    if wants(Phase::Services) {
        step("Services of every kind");
        services::drive(&mut world, &apps, &webs)?;
        services::hairpin(&mut world, &apps)?;
        services::port_forward(&mut world, &apps)?;
    }
    if wants(Phase::Lives) {
        step("how pods come and go");
        lives::probes(&mut world, &apps)?;
        lives::jobs(&mut world, &webs)?;
        lives::address_used_again(&mut world, &webs)?;
        lives::static_pod(&mut world, &webs)?;
        lives::init_and_ephemeral(&mut world, &webs)?;
        lives::host_network(&mut world, &webs)?;
        lives::rollout(&mut world, &mut apps, &postgres_programs)?;
    }
    if wants(Phase::Rights) {
        step("the least rights");
        rights::doctor(&world)?;
        rights::audit_log(&world)?;
        rights::each_is_needed(&world, &Path::new(apps::PROGRAMS).join("netaudit"))?;
    }
    if wants(Phase::Faults) {
        step("policies change under traffic");
        faults::policy_changes(&mut world, &apps)?;
        step("agents are replaced under traffic");
        faults::agents_replaced(&mut world, &apps, &webs)?;
        // Last, since the cluster's own controllers take a while to hear again.
        step("the API server is gone for a minute");
        faults::api_server_gone(&mut world, &apps, &webs, OUTAGE)?;
    }
    if wants(Phase::Enforcer) {
        step("an enforcer comes");
        world.start_enforcer(&apps)?;
        batchivo::enforced(&mut world, &apps)?;
        world.compare("enforced")?;
    }
    if options.only.contains(&Phase::Cost) {
        step("what the agent costs");
        cost::measure(&mut world, &apps)?;
    }
    step("uninstalled");
    removal::uninstall(&world, &deploy, &pinned)?;
    step("done");
    Ok(())
}

/// User and group id of a user of this machine.
fn user_of(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let mut fields = line.with_context(|| format!("no user {name} in /etc/passwd"))?.split(':').skip(2);
    let mut id = || fields.next().and_then(|id| id.parse().ok());
    id().zip(id()).with_context(|| format!("the user {name} of /etc/passwd has no ids"))
}
