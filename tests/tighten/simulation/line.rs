//! The real line, from usage rows to the text of changed policies, as the command goes it; flows come from memory and not from a store.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
    sync::Arc,
};

use netaudit::{
    advise::{
        lint::{Item, What},
        tighten::{self, Advice, Broken, Change, Contained, Names, Options, Settled, Uses},
        what_if::{self, Class, End, Judged, Tally, Workload},
    },
    audit::usage::{histories, judge},
    cluster::{Cluster, Object, PodId},
    model::{Direction, Protocol, Timestamp},
    policy::{METADATA_NAME, NamespaceView, declared::NetworkPolicy},
    watch::placed::{self, Placed},
};
use serde_json::Value;

use super::{
    ask::Who,
    planted::Planted,
    render::File,
    traffic::{NEEDS, Past, Sent, converted},
    world::World,
};
use crate::policy::case;

/// A policy of a file.
pub struct Target {
    pub file: usize,
    /// Its place among the file's objects.
    pub item: usize,
    pub prefix: String,
    /// Which document it is in, from 1.
    pub document: u32,
    pub policy: NetworkPolicy,
}

/// What became of the policies.
pub struct Line {
    pub targets: Vec<Target>,
    pub options: Options,
    pub advice: Advice,
    /// Of each policy and proposal: why it is not made, where it is not.
    pub refused: Vec<BTreeMap<usize, String>>,
    pub patched: Patched,
}

/// Of each policy.
pub struct Patched {
    pub made: Vec<Vec<usize>>,
    pub policies: Vec<NetworkPolicy>,
    pub contained: Vec<Contained>,
    /// Of each file.
    pub texts: Vec<String>,
    refused: Vec<Vec<(usize, String)>>,
}

/// Recorded flows that are judged again: what the stores and histories of the command are, in memory.
struct Recorded {
    classes: Vec<(Class, Tally)>,
    names: Names,
}

struct Replay(Broken);

impl AsRef<Broken> for Replay {
    fn as_ref(&self) -> &Broken {
        &self.0
    }
}

impl Line {
    /// The changes of a policy that were made.
    pub fn changes(&self, policy: usize) -> Vec<&Change> {
        // At the end all that was asked for was made, and what was not asked for is refused or not worth it alone.
        let is_any = !self.patched.made[policy].is_empty();
        let proposals = self.advice[policy].proposals.iter().enumerate();
        let made = proposals.filter(|(at, _)| is_any && !self.refused[policy].contains_key(at));
        made.map(|(_, it)| &it.change).collect()
    }
}

/// Goes the whole line. What a step of it must never do is the error.
pub fn line(world: &mut World, past: &Past, files: &[File], planted: Planted) -> Result<Line, String> {
    let targets = targets(world, files)?;
    let options = Options {
        evidence: NEEDS,
        keep_ranges: world.random.percent(5),
        narrow_named: world.random.percent(25),
        add_ports: world.random.percent(25),
    };
    let mut histories = histories(&planted.rows(past));
    planted.histories(&mut histories, world);
    let mut judged = judge(&histories, &options.evidence);
    planted.judgements(&mut judged, &histories);
    let recorded = recorded(world, past);
    let policies: Vec<NetworkPolicy> = targets.iter().map(|it| it.policy.clone()).collect();
    let mut before = Judge::new(world, &policies);
    let mut uses = Uses::default();
    for (class, tally) in recorded.classes.iter().filter(|_| planted != Planted::Uncredited) {
        uses.add(class, "run", tally, &before.judge(class));
    }
    let mut advice = tighten::advise(&policies, &histories, &judged, &uses, &recorded.names, &options);
    planted.advice(&mut advice);
    let namespaces = namespaces(world);
    let write = |changes: &[Vec<&Change>]| {
        let patched = patch(files, &targets, changes, &namespaces, planted);
        let refused = match &patched {
            Ok(patched) => patched.refused.clone(),
            Err(_) => targets.iter().map(|_| Vec::new()).collect(),
        };
        (patched, refused)
    };
    let replay = |patched: &Result<Patched, String>| {
        let mut broken = Broken::default();
        let Ok(patched) = patched else { return Replay(broken) };
        // Two proofs stand behind each other: for an error to get through to the checks, this one must miss it.
        if planted.skips_replay() {
            return Replay(broken);
        }
        let (mut before, mut after) = (Judge::new(world, &policies), Judge::new(world, &patched.policies));
        for (class, tally) in &recorded.classes {
            broken.add(class, "run", tally, &before.judge(class), &after.judge(class));
        }
        Replay(broken)
    };
    let Settled { refused, patched, .. } = tighten::settle(&advice, write, replay)?;
    let patched = patched?;
    drop(judged);
    Ok(Line { targets, options, advice, refused, patched })
}

fn policy_of(item: &Item) -> Option<&NetworkPolicy> {
    match &item.what {
        What::Object(Object::NetworkPolicy(policy)) => Some(policy),
        _ => None,
    }
}

fn read(file: &File, text: &str) -> Result<Placed, String> {
    let placed = placed::read(Path::new(&file.name), text.as_bytes());
    match placed.errors.is_empty() && placed.unlike.is_empty() && placed.passed_over.is_empty() {
        true => Ok(placed),
        false => Err(format!("cannot be read: {:?} {:?}\n{text}", placed.errors, placed.unlike)),
    }
}

/// The policies as the files have them, in the world's order.
fn targets(world: &World, files: &[File]) -> Result<Vec<Target>, String> {
    let mut targets = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let placed = read(file, &file.text)?;
        for (place, item) in placed.manifests.items.iter().enumerate() {
            let Some(policy) = policy_of(item) else { return Err("something else was read".to_owned()) };
            targets.push(Target {
                file: number,
                item: place,
                prefix: item.prefix.clone(),
                document: placed.sources[place].document,
                policy: policy.clone(),
            });
        }
    }
    let expected = converted(&world.policies);
    let read: Vec<Object> = targets.iter().map(|it| Object::NetworkPolicy(it.policy.clone())).collect();
    // An order of labels is none.
    match format!("{read:?}") == format!("{expected:?}") || read == expected {
        true => Ok(targets),
        false => Err(format!("the renderer and the reader differ:\n{read:#?}\n{expected:#?}")),
    }
}

fn namespaces(world: &World) -> Vec<NamespaceView> {
    let objects = converted(&world.objects);
    let of = |object: &Object| match object {
        Object::Namespace(it) => {
            let labels = it.labels.with(METADATA_NAME, &it.name);
            Some(NamespaceView { name: Arc::clone(&it.name), labels, doubt: None })
        }
        _ => None,
    };
    objects.iter().filter_map(of).collect()
}

/// Writes changes of all policies into the texts of their files, one policy after the other, and reads each again.
fn patch(
    files: &[File],
    targets: &[Target],
    changes: &[Vec<&Change>],
    namespaces: &[NamespaceView],
    planted: Planted,
) -> Result<Patched, String> {
    let mut patched = Patched {
        made: Vec::new(),
        policies: Vec::new(),
        contained: Vec::new(),
        texts: files.iter().map(|it| it.text.clone()).collect(),
        refused: Vec::new(),
    };
    for (target, changes) in targets.iter().zip(changes) {
        if changes.is_empty() {
            patched.made.push(Vec::new());
            patched.refused.push(Vec::new());
            patched.policies.push(target.policy.clone());
            patched.contained.push(Contained::ByElements);
            continue;
        }
        let old = &patched.texts[target.file];
        let file = &files[target.file];
        let text = placed::without_mark(old);
        let place: Range<usize> = placed::document(Path::new(&file.name), text, target.document)
            .ok_or_else(|| format!("its document is not found\n{old}"))?;
        let asked = planted.positions(changes);
        let asked: Vec<&Change> = asked.iter().collect();
        let written = tighten::write(&text[place.clone()], &target.prefix, &target.policy, &asked);
        let front = &old[..old.len() - text.len()];
        let new = format!("{front}{}{}{}", &text[..place.start], written.text, &text[place.end..]);
        let made: Vec<&Change> = written.made.iter().map(|it| changes[*it]).collect();
        let policy = tighten::changed(&target.policy, &made);
        is_right(file, target, old, &new, &policy)
            .map_err(|reason| format!("{reason}\nchanges: {made:?}\n--- before\n{old}\n--- after\n{new}"))?;
        let contained = tighten::containment(&target.policy, &policy, namespaces);
        patched.texts[target.file] = new;
        patched.made.push(written.made);
        patched.refused.push(written.refused);
        patched.policies.push(policy);
        patched.contained.push(contained);
    }
    Ok(patched)
}

/// Whether the text read again says what it was to say, and all else what it did.
fn is_right(
    file: &File,
    target: &Target,
    old: &str,
    new: &str,
    expected: &NetworkPolicy,
) -> Result<(), String> {
    let (old, new) = (read(file, old)?, read(file, new)?);
    if old.manifests.items.len() != new.manifests.items.len() {
        return Err("there are more or fewer objects".to_owned());
    }
    for (place, (was, is)) in old.manifests.items.iter().zip(&new.manifests.items).enumerate() {
        let is_right = match place == target.item {
            true => policy_of(is) == Some(expected) && is.prefix == was.prefix,
            false => policy_of(is) == policy_of(was),
        };
        if !is_right {
            return Err(format!("read again, item {place} says something else: {:#?}", policy_of(is)));
        }
    }
    Ok(())
}

/// An index with the present objects and some policies.
struct Judge {
    cluster: Cluster,
    pods: HashMap<Arc<str>, PodId>,
}

impl Judge {
    fn new(world: &World, policies: &[NetworkPolicy]) -> Self {
        let mut objects = converted(&world.objects);
        objects.extend(policies.iter().cloned().map(Object::NetworkPolicy));
        let mut cluster = Cluster::new();
        cluster.reset_all(objects, Timestamp(0));
        let pods = world.pods.iter().filter_map(|pod| {
            let id = cluster.pod_by_uid(&pod.uid)?;
            Some((Arc::from(pod.uid.as_str()), id))
        });
        Self { pods: pods.collect(), cluster }
    }

    fn judge(&mut self, class: &Class) -> Judged {
        let find = |end: &End| match end {
            End::Pod { uid, .. } => self.pods.get(uid).copied(),
            _ => None,
        };
        let (subject, peer) = (find(&class.subject), find(&class.peer));
        what_if::judge(&mut self.cluster, class, subject, peer, Timestamp(0))
    }
}

/// The records as the store would have them.
fn recorded(world: &World, past: &Past) -> Recorded {
    let names: Names = world
        .names()
        .into_iter()
        .map(|(ip, names)| (ip, names.into_iter().map(Arc::from).collect()))
        .collect();
    let mut classes: Vec<(Class, Tally)> = Vec::new();
    let mut known: HashMap<Class, usize> = HashMap::new();
    for (number, sent) in past.sent.iter().enumerate() {
        for (place, direction) in [Direction::Egress, Direction::Ingress].into_iter().enumerate() {
            if !sent.stored[place] {
                continue;
            }
            let class = class(world, sent, direction, &names);
            let at = *known.entry(class.clone()).or_insert_with(|| {
                classes.push((class, Tally::default()));
                classes.len() - 1
            });
            let tally = &mut classes[at].1;
            tally.records += 1;
            tally.flows += 1;
            tally.reached += u64::from(sent.reached[1]);
            tally.first = tally.first.min(Timestamp(sent.at));
            tally.last = tally.last.max(Timestamp(sent.at));
            tally.example = number as u64;
        }
    }
    // Names are known of addresses that somebody went to.
    let outside = |it: &End| if let End::External { ip, .. } = it { Some(*ip) } else { None };
    let met: Vec<_> = classes.iter().filter_map(|it| outside(&it.0.peer)).collect();
    Recorded { classes, names: names.into_iter().filter(|it| met.contains(&it.0)).collect() }
}

fn class(world: &World, sent: &Sent, direction: Direction, names: &Names) -> Class {
    let end = |(who, ip): (Who, std::net::IpAddr)| match who {
        Who::Pod(at) => {
            let pod = &world.pods[at];
            let (namespace, name) = pod.name.split_once('/').expect("namespace/name");
            End::Pod {
                namespace: namespace.into(),
                name: name.into(),
                uid: pod.uid.as_str().into(),
                node: format!("node-{}", pod.node).into(),
                workload: Workload { kind: "Pod".into(), name: name.into() },
                ip: Some(ip),
            }
        }
        Who::Node(at) => End::Node { name: format!("node-{at}").into(), ip: Some(ip) },
        Who::Outside => End::External { ip, names: names.get(&ip).into_iter().flatten().cloned().collect() },
    };
    let (from, to) = (end(sent.connection.from), end(sent.connection.to));
    let (subject, peer) = if direction == Direction::Egress { (from, to) } else { (to, from) };
    let protocol = match sent.connection.protocol {
        case::Protocol::Udp => Protocol::Udp,
        case::Protocol::Tcp | case::Protocol::Sctp => Protocol::Tcp,
    };
    Class { direction, subject, peer, protocol, port: sent.connection.port, hidden: None }
}

/// What the changed texts say, as the independent evaluator wants it: as a plain reader of YAML has it.
pub fn values(texts: &[String]) -> Result<Vec<Value>, String> {
    let mut policies = Vec::new();
    for text in texts {
        let mut documents = vec![String::new()];
        for line in placed::without_mark(text).lines() {
            match line == "---" {
                true => documents.push(String::new()),
                false => documents.last_mut().expect("one").push_str(&format!("{line}\n")),
            }
        }
        for document in documents.iter().filter(|it| it.lines().any(|it| !it.starts_with('#'))) {
            let value: Value =
                serde_saphyr::from_str(document).map_err(|error| format!("{error}\n{document}"))?;
            match value.get("items").and_then(Value::as_array) {
                Some(items) => policies.extend(items.iter().cloned()),
                None => policies.push(value),
            }
        }
    }
    Ok(policies)
}
