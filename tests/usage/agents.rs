//! The agents of a simulated cluster: each with a real auditor, a clock that may be set, and a disk that may be torn.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use netaudit::{
    audit::{
        Auditor, Budget, RunKey, Settings,
        usage::{Rows, Run, next_sequence, restore},
    },
    cluster::Object,
    model::{Actor, CgroupId, Comm, Direction, NetnsCookie, Observation, Outcome, Protocol, Timestamp},
    store::document,
};

use super::world::{COVERAGE, WINDOW};

const HOST: NetnsCookie = NetnsCookie(1);

/// An end of a connection as the kernel sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Nanoseconds of the time that really passed.
    pub at: i64,
    pub direction: Direction,
    pub protocol: Protocol,
    /// The pod: its number and UID.
    pub pod: (u64, String),
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// A node, and what its kernel and disk hold.
pub struct Node {
    pub name: String,
    pub has_agent: bool,
    /// Whether the programs outlive the agent.
    pub pins: bool,
    /// Which boot, and when it was.
    boot: u32,
    booted: i64,
    /// How far the wall clock is ahead of the time that really passed.
    pub skew: i64,
    /// Files by name.
    pub disk: BTreeMap<(u64, Timestamp), Vec<u8>>,
    /// The rows of all of them, kept up by merging what is written.
    read: Option<Rows>,
    pub agent: Option<Agent>,
    /// What the kernel holds for the next agent.
    backlog: Vec<Seen>,
    /// Records that were lost since the programs were loaded.
    losses: u64,
    /// The wall clock and the real time when something was last written.
    pub written: Option<(i64, i64)>,
}

pub struct Agent {
    pub auditor: Auditor,
    key: RunKey,
    run: Run,
    losses: u64,
    socket: u64,
}

impl Node {
    pub fn new(name: &str, has_agent: bool, pins: bool, now: i64) -> Self {
        Self {
            name: name.to_owned(),
            has_agent,
            pins,
            boot: 0,
            booted: now - 1_000_000_000_000,
            skew: 0,
            disk: BTreeMap::new(),
            read: None,
            agent: None,
            backlog: Vec::new(),
            losses: 0,
            written: None,
        }
    }

    /// The node boots: what its kernel held is gone.
    pub fn boot(&mut self, now: i64) {
        self.boot += 1;
        self.booted = now;
        self.backlog.clear();
        self.losses = 0;
    }

    /// Starts the agent.
    pub fn start(&mut self, objects: Vec<Object>, pods: &[(u64, String)], now: i64) {
        let since_boot = now - self.booted;
        let wall = now + self.skew - since_boot;
        let mut stored = Rows::default();
        // What cannot be read is set aside.
        self.disk.retain(|_, text| match document::read(text) {
            Ok(rows) => {
                stored.merge(rows);
                true
            }
            Err(_) => false,
        });
        let seconds = u64::try_from((now + self.skew) / 1_000_000_000).unwrap_or(0);
        let sequence = next_sequence(&stored, &self.name, seconds);
        let key = RunKey { node: self.name.as_str().into(), run: format!("{}-{sequence}", self.name).into() };
        let from = Timestamp(since_boot + wall);
        let run = Run {
            written: from,
            from,
            sequence,
            boot: format!("{}-{}", self.name, self.boot).into(),
            line: wall,
            wall,
            ended: false,
            losses: self.losses,
        };
        let mut auditor = Auditor::new(Settings {
            node: key.node.clone(),
            run: key.run.clone(),
            host: HOST,
            budget: Budget::default(),
            unused_after: WINDOW,
            unused_coverage: COVERAGE,
        });
        let restored = restore(stored, &key, &run, self.pins);
        auditor.usage_mut().restore(restored.histories, restored.resumed);
        let mut agent = Agent { auditor, key, run, losses: self.losses, socket: 0 };
        let met = self.backlog.iter().map(|seen| &seen.pod);
        let known: BTreeSet<&(u64, String)> = pods.iter().chain(met).collect();
        known.into_iter().for_each(|pod| agent.pod_appears(pod));
        agent.objects(objects, from);
        agent.auditor.set_ready();
        agent.auditor.watch_rules(from);
        self.agent = Some(agent);
        for seen in std::mem::take(&mut self.backlog) {
            self.see(seen, now);
        }
    }

    /// The kernel sees something, `now` or before.
    pub fn see(&mut self, seen: Seen, now: i64) {
        match &mut self.agent {
            Some(agent) => {
                let line = agent.run.line - self.booted;
                agent.observe(&seen, Timestamp(seen.at + line), Timestamp(now + line));
            }
            None if self.pins && self.has_agent => self.backlog.push(seen),
            None => {}
        }
    }

    /// A record is lost, and counted.
    pub fn lose(&mut self) {
        if self.agent.is_some() || self.pins {
            self.losses += 1;
        }
    }

    /// This moment on the agent's time line.
    pub fn line(&self, now: i64) -> Timestamp {
        let line = self.agent.as_ref().map_or(0, |agent| agent.run.line);
        Timestamp(now - self.booted + line)
    }

    /// A second passes, as it were.
    pub fn tick(&mut self, now: i64) {
        let (at, losses) = (self.line(now), self.losses);
        if let Some(agent) = &mut self.agent {
            let mut flows = Vec::new();
            agent.auditor.lost(losses - agent.losses);
            agent.losses = losses;
            agent.auditor.settle(at, &mut flows);
            agent.auditor.tick(at, &mut flows);
        }
    }

    /// Everything that is known goes to the disk.
    pub fn write(&mut self, now: i64, ended: bool) {
        let at = self.line(now);
        let wall = now + self.skew - (now - self.booted);
        let Some(agent) = &mut self.agent else { return };
        agent.run.written = at;
        agent.run.wall = wall;
        agent.run.ended = ended;
        agent.run.losses = agent.losses;
        let usage = agent.auditor.usage_mut();
        let mut has_written = false;
        for mut rows in usage.take_closed().into_iter().chain([usage.rows()]) {
            let Some(window) = rows.rules.keys().next().map(|key| key.window) else { continue };
            rows.add_run(agent.key.clone(), agent.run.clone());
            let text = document::write(&rows);
            if let Some(read) = &mut self.read {
                read.merge(document::read(&text).expect("what was just written"));
            }
            self.disk.insert((agent.run.sequence, window), text);
            has_written = true;
        }
        // An agent that watches no rule says nothing, and so not when.
        if has_written {
            self.written = Some((now + self.skew, now));
        }
    }

    /// An error on purpose: whatever was written last is said to be a run's orderly end.
    pub fn call_it_an_end(&mut self) {
        for text in self.disk.values_mut() {
            let Ok(mut rows) = document::read(text) else { continue };
            rows.runs.values_mut().for_each(|run| run.ended = true);
            *text = document::write(&rows);
        }
        self.read = None;
    }

    /// The rows on its disk, as somebody reads them who changes nothing.
    pub fn rows(&mut self) -> &Rows {
        self.read.get_or_insert_with(|| {
            let mut rows = Rows::default();
            self.disk.values().filter_map(|text| document::read(text).ok()).for_each(|it| rows.merge(it));
            rows
        })
    }

    /// A file has changed, and not by writing more to it.
    pub fn forget_what_was_read(&mut self) {
        self.read = None;
    }
}

impl Agent {
    /// All objects of the cluster.
    pub fn objects(&mut self, objects: Vec<Object>, at: Timestamp) {
        self.auditor.cluster_mut().reset_all(objects, at);
        self.auditor.objects_changed(at, &mut Vec::new());
    }

    /// The kernel tells of a pod's cgroup and namespace.
    pub fn pod_appears(&mut self, (number, uid): &(u64, String)) {
        let cgroup = CgroupId(number + 100_000);
        self.auditor.attribution_mut().cgroup(cgroup, &format!("/kubepods/pod{uid}/c"));
        self.auditor.attribution_mut().pair(NetnsCookie(number + 100), cgroup);
    }

    fn observe(&mut self, seen: &Seen, at: Timestamp, now: Timestamp) {
        self.socket += 1;
        let outcome = match (seen.direction, seen.protocol) {
            (Direction::Egress, Protocol::Udp) => Outcome::Answered,
            (Direction::Egress, _) => Outcome::Established,
            (Direction::Ingress, Protocol::Udp) => Outcome::Received,
            (Direction::Ingress, _) => Outcome::Accepted,
        };
        let observation = Observation {
            at,
            direction: seen.direction,
            protocol: seen.protocol,
            netns: NetnsCookie(seen.pod.0 + 100),
            actor: Actor { cgroup: Some(CgroupId(seen.pod.0 + 100_000)), pid: 1, comm: Comm::new("test") },
            local: seen.local,
            remote: seen.remote,
            requested: None,
            outcome,
            waited: Duration::ZERO,
            errno: None,
            answered: true,
            socket: self.socket,
            sequence: 1,
            folded: None,
            handshake: NonZeroU32::new(7),
            translated: None,
            maybe_repeated: false,
        };
        self.auditor.observe(&observation, now, &mut Vec::new());
    }
}

/// The address that two ends share a family of, and that of the other.
pub fn pair(a: &[IpAddr], b: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    a.iter().find_map(|a| b.iter().find(|b| a.is_ipv4() == b.is_ipv4()).map(|b| (*a, *b)))
}
