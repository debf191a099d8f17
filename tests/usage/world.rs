//! A cluster made by chance, in which time passes and much goes wrong.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use netaudit::{
    audit::{Evidence, RuleKey, usage::Rows},
    cluster::{Cluster, Object},
    model::{self, Direction},
    watch::convert::{self, Converted},
};
use serde_json::{Value, json};

use super::{
    agents::{Node, Seen, pair},
    ledger::Ledger,
};
use crate::policy::{
    case::{End, Flow, Protocol},
    generate::{self, Kinds},
    naive::name_of,
    random::Random,
};

/// How long a rule must be watched.
pub const WINDOW: Duration = Duration::from_secs(24 * 3_600);
/// How much of it: of a day 9 seconds may be missing.
pub const COVERAGE: f64 = 0.9999;
pub const NEEDS: Evidence = Evidence { window: WINDOW, coverage: COVERAGE };

pub const SECOND: i64 = 1_000_000_000;
/// Between two things that happen.
pub const STEP: i64 = 900 * SECOND;
/// How far apart two runs of the CronJob are: further than a rule must be watched that is not for it.
pub const PERIOD: Duration = Duration::from_secs(30 * 3_600);
/// From the epoch to the first of them.
const BEGIN: i64 = 1_700_000_000 * SECOND;

/// A connection that is made now and then.
struct Pattern {
    from: Who,
    to: Who,
    protocol: Protocol,
    port: u16,
    /// Chance of each step, in a thousand.
    often: u64,
    /// Whether it is made only where somebody is not looking: what is worst for whoever says that nothing happened.
    sneaky: bool,
    /// Whether the CronJob makes it, at each of its runs and never else.
    scheduled: bool,
}

#[derive(Clone)]
enum Who {
    /// Which of the pods, whatever it is called now.
    Pod(usize),
    Ip(std::net::IpAddr),
}

pub struct World {
    pub random: Random,
    pub now: i64,
    pub nodes: Vec<Node>,
    pub ledger: Ledger,
    /// When the CronJob was made, where there is one: it runs for the first time a period later.
    pub cron_job: Option<i64>,
    /// Policies, namespaces, nodes.
    objects: Vec<Value>,
    /// Those of one place are each other's successors; `None` between two of them.
    pods: Vec<Option<Value>>,
    /// Numbers that were given to pods.
    numbers: BTreeMap<String, u64>,
    /// Policies that may come, and rules that may be inserted.
    spare: Vec<Value>,
    patterns: Vec<Pattern>,
    cluster: Cluster,
    changed: bool,
    is_calm: bool,
    /// What happens more often than all else, by its number in [`World::happen`].
    often: Option<usize>,
    /// In how many of a hundred steps something happens.
    trouble: u64,
    /// A node on which everything is lost, and until when.
    storm: Option<(usize, i64)>,
    /// A node whose agent is there again by the next step, and whether all its pods are others by then.
    returning: Option<(usize, bool)>,
    sent: i64,
}

impl World {
    /// Whether there is a CronJob is left to chance where it is not said.
    pub fn new(seed: u64, often: Option<usize>, cron_job: Option<bool>) -> Self {
        let mut random = Random::new(seed ^ 0x75_5a6e);
        let kinds =
            *random.pick(&[Kinds::NetworkPolicy, Kinds::NetworkPolicy, Kinds::V1Alpha1, Kinds::V1Alpha2]);
        let case = generate::case(seed, kinds, 40);
        let spare = generate::case(seed.wrapping_add(1_000_000), kinds, 0);
        let is_policy = |it: &Value| it["kind"].as_str().is_some_and(|kind| kind.ends_with("Policy"));
        let is_pod = |it: &Value| it["kind"] == "Pod";
        let single = random.percent(40);
        let mut pods: Vec<Option<Value>> = Vec::new();
        for mut pod in case.objects.iter().filter(|it| is_pod(it)).cloned() {
            let node = if single { 0 } else { random.below(2) };
            pod["spec"]["nodeName"] = format!("node-{node}").into();
            pod["spec"].as_object_mut().expect("an object").remove("hostNetwork");
            let index = pods.len();
            let ip = format!("10.0.{}.{}", index % 3, index + 1);
            pod["status"]["podIP"] = ip.as_str().into();
            pod["status"]["podIPs"] = json!([{ "ip": ip }]);
            pods.push(Some(pod));
        }
        let mut objects: Vec<Value> =
            case.objects.iter().filter(|it| !is_pod(it) && it["kind"] != "Node").cloned().collect();
        let nodes: Vec<Node> = (0..if single { 1 } else { 2 })
            .map(|n| {
                let has_agent = n == 0 || random.percent(75);
                Node::new(&format!("node-{n}"), has_agent, random.percent(50), BEGIN)
            })
            .collect();
        for n in 0..nodes.len() {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}")},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.0.{}", n + 1)}]},
            }));
        }
        let who = |end: &End| match end {
            End::Pod(name) => {
                let is_it = |pod: &&Option<Value>| pod.as_ref().is_some_and(|pod| name_of(pod) == *name);
                pods.iter().position(|pod| is_it(&pod)).map(Who::Pod)
            }
            End::Ip(ip) if ip.is_ipv4() => Some(Who::Ip(*ip)),
            End::Ip(_) => None,
        };
        let patterns = case.flows.iter().filter_map(|flow| {
            let often = *random.pick(&[0, 0, 0, 2, 4, 20, 200, 400]);
            let sneaky = often == 400;
            let (from, to) = (who(&flow.from)?, who(&flow.to)?);
            (flow.protocol != Protocol::Sctp).then_some(Pattern {
                from,
                to,
                protocol: flow.protocol,
                port: flow.port,
                often,
                sneaky,
                scheduled: false,
            })
        });
        let patterns = patterns.collect();
        // Where much goes wrong the evidence never suffices, and nothing is said that could be wrong.
        let trouble = *random.pick(&[1, 2, 4, 12]);
        let mut world = Self {
            random,
            now: BEGIN,
            nodes,
            ledger: Ledger::default(),
            cron_job: None,
            objects,
            pods,
            numbers: BTreeMap::new(),
            spare: spare.objects.into_iter().filter(is_policy).collect(),
            patterns,
            cluster: Cluster::new(),
            changed: true,
            is_calm: false,
            often,
            trouble,
            storm: None,
            returning: None,
            sent: 0,
        };
        for place in 0..world.pods.len() {
            world.rename(place);
        }
        let by_chance = world.random.percent(50);
        if cron_job.unwrap_or(by_chance) {
            world.make_cron_job();
        }
        world.apply();
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        world
    }

    /// A CronJob whose pods look like one of the pods: what that one did, its runs do.
    fn make_cron_job(&mut self) {
        let senders = self.patterns.iter().filter(|it| it.often > 0 && !it.sneaky);
        let senders: Vec<usize> =
            senders.filter_map(|it| if let Who::Pod(place) = it.from { Some(place) } else { None }).collect();
        if senders.is_empty() {
            return;
        }
        let place = *self.random.pick(&senders);
        let from_it = |it: &&mut Pattern| matches!(it.from, Who::Pod(from) if from == place);
        for pattern in self.patterns.iter_mut().filter(from_it) {
            (pattern.scheduled, pattern.sneaky) = (pattern.often > 0 && !pattern.sneaky, false);
        }
        let pod = self.pods[place].as_ref().expect("a pod");
        self.objects.push(json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "cleanup", "namespace": pod["metadata"]["namespace"],
                         "creationTimestamp": time_text(self.now)},
            "spec": {"schedule": "@every 30h", "jobTemplate": {"spec": {"template": {
                "metadata": {"labels": pod["metadata"]["labels"]}}}}},
        }));
        self.cron_job = Some(self.now);
    }

    /// Whether the CronJob runs in this step.
    fn is_run(&self) -> bool {
        let period = i64::try_from(PERIOD.as_nanos()).expect("hours");
        self.cron_job.is_some_and(|made| self.now > made && (self.now - made) % period < STEP)
    }

    /// A pod gets a name and a UID that no other had, and was made now.
    fn rename(&mut self, place: usize) {
        let number = self.numbers.len() as u64 + 1;
        let Some(pod) = &mut self.pods[place] else { return };
        let name = format!("pod-{number}");
        let uid = format!("{number:08x}-0000-4000-8000-000000000000");
        pod["metadata"]["name"] = name.as_str().into();
        pod["metadata"]["uid"] = uid.as_str().into();
        pod["metadata"]["creationTimestamp"] = time_text(self.now).into();
        self.numbers.insert(uid, number);
    }

    fn all(&self) -> Vec<Value> {
        self.objects.iter().chain(self.pods.iter().flatten()).cloned().collect()
    }

    fn converted(&self) -> Vec<Object> {
        let source = "simulation".into();
        let all = self.all();
        let converted = all.iter().flat_map(|object| convert::document(object, &source));
        let objects = converted.filter_map(|it| match it {
            Converted::Object(object) => Some(object),
            Converted::Ignored(_) | Converted::Nothing(_) => None,
        });
        objects.collect()
    }

    fn number(&self, pod: &Value) -> (u64, String) {
        let uid = pod["metadata"]["uid"].as_str().expect("a UID").to_owned();
        (self.numbers[&uid], uid)
    }

    fn pods_of(&self, node: &str) -> Vec<(u64, String)> {
        let pods = self.pods.iter().flatten().filter(|pod| pod["spec"]["nodeName"] == *node);
        pods.map(|pod| self.number(pod)).collect()
    }

    fn start(&mut self, node: usize) {
        let objects = self.converted();
        let pods = self.pods_of(&self.nodes[node].name);
        let node = &mut self.nodes[node];
        if node.has_agent {
            node.start(objects, &pods, self.now);
        }
    }

    /// Objects have changed.
    fn apply(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let objects = self.converted();
        self.cluster.reset_all(objects.clone(), model::Timestamp(self.now));
        for n in 0..self.nodes.len() {
            let pods = self.pods_of(&self.nodes[n].name);
            let at = self.nodes[n].line(self.now);
            if let Some(agent) = &mut self.nodes[n].agent {
                pods.iter().for_each(|pod| agent.pod_appears(pod));
                agent.objects(objects.clone(), at);
            }
        }
    }

    /// Nothing goes wrong any more: all agents run, and all clocks are right.
    pub fn calm_down(&mut self) {
        self.is_calm = true;
        for place in 0..self.pods.len() {
            if self.pods[place].is_none() {
                self.changed = true;
            }
        }
        self.apply();
        for n in 0..self.nodes.len() {
            self.nodes[n].skew = 0;
            if self.nodes[n].agent.is_none() {
                self.start(n);
            }
        }
    }

    /// Ten minutes pass.
    pub fn step(&mut self) {
        let mut dying = None;
        if !self.is_calm {
            dying = self.happen();
        }
        self.apply();
        self.traffic(dying);
        // Killed before it could write what it saw of this.
        if let Some(node) = dying {
            self.nodes[node].agent = None;
        }
        self.now += STEP;
        for node in &mut self.nodes {
            node.tick(self.now);
            node.write(self.now, false);
        }
    }

    /// Whether nobody may come to know what the pod of a pattern does now.
    fn is_unseen(&self, who: &Who, dying: Option<usize>) -> bool {
        let Who::Pod(place) = who else { return false };
        let Some(pod) = &self.pods[*place] else { return false };
        let node = self.nodes.iter().position(|node| pod["spec"]["nodeName"] == *node.name);
        node.is_none_or(|n| dying == Some(n) || self.nodes[n].agent.is_none() || self.is_storm(n))
    }

    fn is_storm(&self, node: usize) -> bool {
        self.storm.is_some_and(|(n, until)| n == node && self.now < until)
    }

    fn traffic(&mut self, dying: Option<usize>) {
        let objects = self.all();
        for n in 0..self.patterns.len() {
            let is_made = match self.patterns[n].scheduled {
                true => self.is_run(),
                false => (self.random.below(1_000) as u64) < self.patterns[n].often,
            };
            if !is_made {
                continue;
            }
            self.sent += 1;
            let at = self.now + (n as i64 + 1) * SECOND;
            let Pattern { from, to, protocol, port, sneaky, scheduled, .. } = &self.patterns[n];
            if *sneaky && (self.is_calm || !self.is_unseen(from, dying) && !self.is_unseen(to, dying)) {
                continue;
            }
            let (Some((from, source)), Some((to, destination))) = (self.end(from), self.end(to)) else {
                continue;
            };
            let flow = Flow::new(from, to, *protocol, *port);
            let addresses = |pod: &Option<Value>, end: &End| match (pod, end) {
                (Some(pod), _) => {
                    vec![pod["status"]["podIP"].as_str().expect("text").parse().expect("an address")]
                }
                (None, End::Ip(ip)) => vec![*ip],
                (None, End::Pod(_)) => Vec::new(),
            };
            let Some((source_ip, destination_ip)) =
                pair(&addresses(&source, &flow.from), &addresses(&destination, &flow.to))
            else {
                continue;
            };
            let local = SocketAddr::new(source_ip, 20_000 + (self.sent % 40_000) as u16);
            let remote = SocketAddr::new(destination_ip, flow.port);
            let protocol = match flow.protocol {
                Protocol::Udp => model::Protocol::Udp,
                Protocol::Tcp | Protocol::Sctp => model::Protocol::Tcp,
            };
            self.ledger.flow(&flow, &objects, &self.cluster, at, *scheduled);
            let ends = [
                (Direction::Egress, &source, local, remote),
                (Direction::Ingress, &destination, remote, local),
            ];
            for (direction, pod, local, remote) in ends {
                let Some(pod) = pod else { continue };
                let seen = Seen { at, direction, protocol, pod: self.number(pod), local, remote };
                let chance = self.random.below(1_000) < 3;
                let node = self.nodes.iter().position(|node| pod["spec"]["nodeName"] == *node.name);
                let lost = !self.is_calm && (chance || node.is_some_and(|node| self.is_storm(node)));
                match node.map(|node| &mut self.nodes[node]) {
                    Some(node) if lost => node.lose(),
                    Some(node) => node.see(seen, at),
                    None => {}
                }
            }
        }
    }

    /// An end as it is now, and its pod if it is one; `None` while there is none.
    fn end(&self, who: &Who) -> Option<(End, Option<Value>)> {
        match who {
            Who::Pod(place) => {
                let pod = self.pods[*place].as_ref()?;
                Some((End::Pod(name_of(pod)), Some(pod.clone())))
            }
            Who::Ip(ip) => Some((End::Ip(*ip), None)),
        }
    }

    /// One thing goes wrong or changes, or none. Returns a node whose agent is killed by the end of the step.
    fn happen(&mut self) -> Option<usize> {
        if let Some((node, are_others)) = self.returning.take() {
            if are_others {
                self.other_pods(node);
            }
            self.start(node);
            return None;
        }
        if !self.random.percent(self.trouble) {
            return None;
        }
        let node = self.random.below(self.nodes.len());
        let is_running = self.nodes[node].agent.is_some();
        let what = match self.often {
            Some(what) if self.random.percent(70) => what,
            _ => self.random.below(11),
        };
        match what {
            // An agent ends or is killed; it comes back by the next thing of this kind that happens to it.
            0 | 1 if is_running => {
                self.nodes[node].write(self.now, true);
                self.nodes[node].agent = None;
            }
            // It is there again before anything else happens.
            2 if is_running => {
                self.returning = Some((node, false));
                return Some(node);
            }
            0..=2 => self.start(node),
            // It is there again at once.
            3 if is_running => {
                self.nodes[node].write(self.now, true);
                self.nodes[node].agent = None;
                self.start(node);
            }
            3 => {
                self.nodes[node].boot(self.now);
                self.start(node);
            }
            4 => {
                // What is set back is set back by more than any agent is away.
                let hours = *self.random.pick(&[-1_000, -500, 1, 30]);
                self.nodes[node].skew += hours * 3_600 * SECOND;
            }
            5 => {
                let node = &mut self.nodes[node];
                let at = self.random.below(node.disk.len().max(1));
                if let Some(file) = node.disk.values_mut().nth(at) {
                    let place = self.random.below(file.len());
                    match self.random.percent(50) {
                        true => file.truncate(place),
                        false => file[place] ^= 1,
                    }
                    node.forget_what_was_read();
                }
            }
            6 => {
                let place = self.random.below(self.pods.len());
                let gone = self.pods[place].is_some() && self.random.percent(30);
                if !gone {
                    self.rename(place);
                }
                self.changed = true;
            }
            7 => {
                // A policy goes, and the same one comes again or another.
                let policies: Vec<usize> = (0..self.objects.len())
                    .filter(|n| {
                        self.objects[*n]["kind"].as_str().is_some_and(|kind| kind.ends_with("Policy"))
                    })
                    .collect();
                if policies.len() > 2 && self.random.percent(50) {
                    let policy = self.objects.remove(*self.random.pick(&policies));
                    self.spare.push(policy);
                } else if !self.spare.is_empty() {
                    let policy = self.spare.remove(self.random.below(self.spare.len()));
                    let is_there = self
                        .objects
                        .iter()
                        .any(|it| it["kind"] == policy["kind"] && name_of(it) == name_of(&policy));
                    if !is_there {
                        self.objects.push(policy);
                    }
                }
                self.changed = true;
            }
            8 => self.insert_rule(),
            // What pods did meanwhile that are gone when it returns, the kernel tells by their UIDs only.
            9 if is_running => {
                self.nodes[node].write(self.now, true);
                self.nodes[node].agent = None;
                self.returning = Some((node, true));
            }
            10 => self.storm = Some((node, self.now + 4 * STEP)),
            _ => {}
        }
        None
    }

    /// All pods of a node are others.
    fn other_pods(&mut self, node: usize) {
        let name = self.nodes[node].name.clone();
        for place in 0..self.pods.len() {
            if self.pods[place].as_ref().is_some_and(|pod| pod["spec"]["nodeName"] == *name) {
                self.rename(place);
            }
        }
        self.changed = true;
    }

    /// A rule of another policy is inserted above those of a NetworkPolicy.
    fn insert_rule(&mut self) {
        let direction = *self.random.pick(&["ingress", "egress"]);
        let is_network = |it: &&Value| it["kind"] == "NetworkPolicy";
        let rules: Vec<Value> = self
            .spare
            .iter()
            .filter(is_network)
            .flat_map(|it| it["spec"][direction].as_array().cloned().unwrap_or_default())
            .collect();
        let policies: Vec<usize> =
            (0..self.objects.len()).filter(|n| self.objects[*n]["kind"] == "NetworkPolicy").collect();
        if rules.is_empty() || policies.is_empty() {
            return;
        }
        let rule = self.random.pick(&rules).clone();
        let policy = &mut self.objects[*self.random.pick(&policies)];
        if let Some(list) = policy["spec"][direction].as_array_mut() {
            list.insert(0, rule);
            self.changed = true;
        }
    }

    /// Everything that is on the disks.
    pub fn rows(&mut self) -> Rows {
        let mut rows = Rows::default();
        self.nodes.iter_mut().for_each(|node| rows.merge(node.rows().clone()));
        rows
    }

    /// The real time at which the wall clocks showed what was told last.
    ///
    /// `told` is what the rows say of it: where the last ones are damaged, those before them tell of a time before.
    pub fn told(&self, told: Option<model::Timestamp>) -> i64 {
        let written = self.nodes.iter().filter_map(|node| node.written).max();
        written.map_or(self.now, |(wall, real)| real - (wall - told.map_or(wall, |told| told.0)).max(0))
    }

    /// Rules that are there, select a pod, can be seen, and of which all pods are on nodes with agents.
    pub fn provable(&self) -> Vec<RuleKey> {
        let mut provable = Vec::new();
        for policy in self.cluster.policies().filter(|it| it.warnings.is_empty()) {
            for direction in [Direction::Egress, Direction::Ingress] {
                let selected: Vec<_> = self
                    .cluster
                    .pods()
                    .filter(|(id, _)| self.cluster.selected_by(*id, direction).any(|it| it.id == policy.id))
                    .map(|(_, pod)| pod.node.clone())
                    .collect();
                let is_seen = |node: &Option<std::sync::Arc<str>>| {
                    self.nodes.iter().any(|it| it.has_agent && Some(it.name.as_str()) == node.as_deref())
                };
                if selected.is_empty() || !selected.iter().all(is_seen) {
                    continue;
                }
                let rules = policy.rules(direction).iter();
                let rules = rules.filter(|rule| rule.is_observable() && rule.can_match());
                provable.extend(rules.map(|rule| RuleKey::from(&*rule.id)));
            }
        }
        provable
    }
}

/// As objects tell times.
fn time_text(at: i64) -> String {
    jiff::Timestamp::from_second(at / SECOND).expect("a time").to_string()
}
