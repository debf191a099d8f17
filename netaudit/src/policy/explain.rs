//! Why a verdict is what it is, at every level: which policies select the subject, what each of their rules says, by
//! which elements, and what was missing where one does not match.
//!
//! Slow, and made of text: the answer itself comes from [`Evaluator`], which explains nothing that it did not decide.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use super::{
    Certainty, CompiledPolicy, KnownNames, Labels, NamedPort, NamespaceView, Rule, Tier,
    compile::{Matcher, NamespaceScope, Peer, PodScope, PortMatch, PortTest},
    evaluate::Found,
    evaluator::{Evaluator, Question},
    summary,
};
use crate::model::{Action, Cause, Decision, Denial, Direction, Gap, PolicyId, Protocol, RuleMatch, Verdict};

/// A pod as it is, with every label: what policies are compared with, in words.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: NamespaceView,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub ports: Arc<[NamedPort]>,
}

/// The other end as it is.
#[derive(Clone, Default, Debug)]
pub struct PeerFacts {
    /// Set where it is a pod.
    pub pod: Option<PodFacts>,
    /// Its name, where it is a node, and its labels, where an object tells them.
    pub node: Option<(Arc<str>, Option<Labels>)>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The names that DNS gave for them.
    pub names: KnownNames<Arc<[Arc<str>]>>,
}

/// Every policy that selects the subject of a verdict and speaks of its direction, in the order in which they are asked.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Explanation {
    /// The policies.
    pub policies: Vec<PolicyTrace>,
}

/// What one policy says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PolicyTrace {
    /// `NetworkPolicy/shop/backend`.
    pub policy: String,
    /// Where it stands: `Admin 10`, `NetworkPolicy`, `Baseline 0`.
    pub place: String,
    /// Whom it selects: `app=web`; empty for all.
    pub selects: String,
    /// What it says of the flow.
    pub says: Says,
    /// Why that is not certain, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// Its rules for the direction, from top to bottom.
    pub rules: Vec<RuleTrace>,
}

/// What a policy says of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// A rule of it allows the flow.
    Allows,
    /// A rule of it denies the flow.
    Denies,
    /// A rule of it passes the flow to the next tier.
    Passes,
    /// It isolates the subject, and no rule of it allows the flow.
    Isolates,
    /// No rule of it matches, and it does not isolate.
    Nothing,
    /// Something of it is in doubt and could change what it says.
    Unknown,
    /// One before it has decided already.
    NotAsked,
}

/// What one rule says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RuleTrace {
    /// `egress[2]`.
    pub path: String,
    /// The name that its author gave it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: String,
    /// `allow`, `deny` or `pass`.
    pub action: &'static str,
    /// What it speaks of, in one line.
    pub summary: String,
    /// Whether it matches; `None` where that is in doubt.
    pub matches: Option<bool>,
    /// Why it is, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// The element of `from` or `to` that matches, or is nearest to.
    pub peer: PartTrace,
    /// The element of `ports` that matches, or is nearest to.
    pub port: PartTrace,
}

/// An element of a rule.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct PartTrace {
    /// `to[0]`, `ports[1]`; empty where the rule names none and so means all.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub element: String,
    /// What would have to be otherwise for it to match; empty where it matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl Explanation {
    /// Whether it explains this verdict: the policies that decide, and they alone, say so. Two ways lead to the same
    /// answer, and a test that compares them notices when one goes astray.
    pub fn explains(&self, verdict: &Verdict) -> bool {
        let says = |policy: &PolicyId, says: Says| {
            let name = policy.to_string();
            self.policies.iter().any(|trace| trace.policy == name && trace.says == says)
        };
        let any = |wanted: Says| self.policies.iter().any(|trace| trace.says == wanted);
        // A rule that matches decides too where one in doubt above it could not turn the answer.
        let by = |found: &RuleMatch, wanted: Says| {
            let matches = |trace: &PolicyTrace| {
                let rule = trace.rules.get(found.rule.index as usize);
                trace.says == Says::Unknown && rule.is_some_and(|rule| rule.matches == Some(true))
            };
            let name = found.rule.policy.to_string();
            says(&found.rule.policy, wanted)
                || self.policies.iter().any(|trace| trace.policy == name && matches(trace))
        };
        verdict.passed.iter().all(|found| by(found, Says::Passes))
            && match &verdict.decision {
                Decision::Allowed(Cause::Rules(rules)) => rules.iter().all(|found| by(found, Says::Allows)),
                // Of two policies with one priority one may allow what the other passes on to nobody.
                Decision::Allowed(Cause::NotIsolated) => !any(Says::Denies) && !any(Says::Isolates),
                Decision::Allowed(Cause::Exempt(_)) => self.policies.is_empty(),
                Decision::Denied(Denial::Rule(found)) => by(found, Says::Denies),
                Decision::Denied(Denial::Isolation(misses)) => {
                    !any(Says::Allows) && misses.iter().all(|miss| says(&miss.policy, Says::Isolates))
                }
                // What is in doubt may be anywhere.
                Decision::Unknown(_) => true,
            }
    }
}

impl PolicyTrace {
    /// The rule that came nearest to matching: one whose peers match before others, then the one that misses least.
    pub fn nearest(&self) -> Option<&RuleTrace> {
        self.rules
            .iter()
            .filter(|rule| rule.matches == Some(false))
            .min_by_key(|rule| (rule.peer.missing.len(), rule.port.missing.len()))
    }
}

impl RuleTrace {
    /// What is missing, peers first.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.peer.missing.iter().chain(&self.port.missing).map(String::as_str)
    }
}

/// Explains the answer that `evaluator` gives to `question`; `subject` and `peer` are the ends of that question.
pub fn explain(
    evaluator: &Evaluator,
    question: &Question<'_>,
    subject: &PodFacts,
    peer: &PeerFacts,
) -> Explanation {
    let flow = Flow {
        direction: question.direction,
        protocol: question.protocol,
        port: question.port,
        subject,
        peer,
    };
    let mut decided: Option<(Tier, u16)> = None;
    let mut passed = None;
    let mut policies = Vec::new();
    let asked = evaluator.trace(question);
    let isolated = asked
        .iter()
        .any(|(selected, _)| selected.loaded.policy.tier == Tier::NetworkPolicy && selected.doubt.is_none());
    for (selected, found) in asked {
        let policy = &selected.loaded.policy;
        let doubt = selected.doubt.as_ref().or(policy.doubt()).map(ToString::to_string);
        let rules = policy.rules(question.direction);
        let mut trace = PolicyTrace {
            policy: policy.id.to_string(),
            place: policy.place(),
            selects: policy.subjects(),
            says: Says::NotAsked,
            doubt,
            rules: rules.iter().zip(&found).map(|(rule, found)| flow.rule(rule, found)).collect(),
        };
        let here = (policy.tier, policy.priority);
        // A decision ends everything but policies that are asked together with the one that made it; a pass ends its
        // tier, and NetworkPolicies that isolate leave nothing for the Baseline tier.
        let over = decided.is_some_and(|at| at != here)
            || passed.is_some_and(|at: (Tier, u16)| at.0 == here.0 && at != here)
            || (isolated && policy.tier == Tier::Baseline);
        if !over {
            trace.says = says(policy, &trace);
            match trace.says {
                // Of policies with one priority the first that matches counts, whatever the others say.
                Says::Allows | Says::Denies | Says::Isolates if passed != Some(here) => decided = Some(here),
                Says::Passes if decided != Some(here) => passed = Some(here),
                Says::Allows | Says::Denies | Says::Isolates | Says::Passes => {}
                Says::Nothing | Says::Unknown | Says::NotAsked => {}
            }
        }
        policies.push(trace);
    }
    Explanation { policies }
}

fn says(policy: &CompiledPolicy, trace: &PolicyTrace) -> Says {
    let surely = trace.rules.iter().position(|rule| rule.matches == Some(true));
    // What is in doubt above the first rule that surely matches may do the same; of a NetworkPolicy their order means
    // nothing.
    let decides = surely.map(|at| trace.rules.split_at(at)).and_then(|(above, rest)| {
        let does_it = |rule: &RuleTrace| rule.matches.is_some() || rule.action == rest[0].action;
        (policy.tier == Tier::NetworkPolicy || above.iter().all(does_it)).then_some(&rest[0])
    });
    match (decides, policy.tier) {
        (Some(rule), _) if trace.doubt.is_none() => match rule.action {
            "deny" => Says::Denies,
            "pass" => Says::Passes,
            _ => Says::Allows,
        },
        _ if trace.rules.iter().any(|rule| rule.matches != Some(false)) => Says::Unknown,
        (_, Tier::NetworkPolicy) if trace.doubt.is_some() => Says::Unknown,
        (_, Tier::NetworkPolicy) => Says::Isolates,
        (_, Tier::Admin | Tier::Baseline) => Says::Nothing,
    }
}

struct Flow<'a> {
    direction: Direction,
    protocol: Protocol,
    port: u16,
    subject: &'a PodFacts,
    peer: &'a PeerFacts,
}

impl Flow<'_> {
    fn rule(&self, rule: &Rule, found: &Found<'_>) -> RuleTrace {
        let (matches, at) = match found {
            Found::Match(hit) => (if rule.doubt.is_some() { None } else { Some(true) }, Some(hit)),
            Found::Perhaps(hit, _) => (None, Some(hit)),
            Found::OtherPort | Found::OtherPeer => (Some(false), None),
        };
        let list = self.direction.peers();
        let element = |peer: &Peer| format!("{list}[{}]", peer.index);
        let peer = match at.map(|hit| hit.peer) {
            Some(Some(position)) => {
                self.certain(&rule.peers[position as usize].doubt, element(&rule.peers[position as usize]))
            }
            Some(None) => PartTrace::default(),
            None => nearest(rule.peers.iter().map(|peer| (element(peer), self.peer_missing(peer)))),
        };
        let ports = (0..)
            .zip(&rule.ports)
            .map(|(n, port): (u32, _)| (format!("ports[{n}]"), self.port_missing(port)));
        let port = match at.map(|hit| hit.port) {
            Some(Some(position)) => {
                self.certain(&rule.ports[position as usize].doubt, format!("ports[{position}]"))
            }
            Some(None) => PartTrace::default(),
            None => nearest(ports),
        };
        let doubt = match found {
            Found::Match(_) => rule.doubt.as_ref().map(ToString::to_string),
            Found::Perhaps(_, Gap::Invalid(reason)) => Some(reason.to_string()),
            Found::Perhaps(_, gap) => Some(gap.to_string()),
            Found::OtherPort | Found::OtherPeer => None,
        };
        RuleTrace {
            path: rule.id.path(),
            name: rule.id.name.to_string(),
            action: match (&rule.doubt, rule.id.action) {
                (Some(_), _) => "unknown",
                (None, action) => Action::as_str(action),
            },
            summary: rule.summary.clone(),
            matches,
            doubt,
            peer,
            port,
        }
    }

    /// An element that matches, or would if it were not in doubt.
    fn certain(&self, doubt: &Option<Arc<str>>, element: String) -> PartTrace {
        PartTrace { element, missing: doubt.iter().map(ToString::to_string).collect() }
    }

    /// What keeps an element of `from` or `to` from meaning the peer; empty where it does.
    fn peer_missing(&self, peer: &Peer) -> Vec<String> {
        match &peer.matcher {
            Matcher::Nobody => vec!["it says of nobody that the API knows".to_owned()],
            Matcher::Anyone => peer.doubt.iter().map(ToString::to_string).collect(),
            Matcher::Pods(scope) => match &self.peer.pod {
                Some(pod) => pod_missing(scope, pod),
                None => {
                    vec![format!(
                        "{} is no pod, and a selector means pods only: {}",
                        self.peer_name(),
                        summary::pods(scope)
                    )]
                }
            },
            Matcher::Nodes(selector) => match &self.peer.node {
                Some((name, Some(labels))) => {
                    selector.missing(labels).into_iter().map(|it| format!("node {name}: {it}")).collect()
                }
                Some(_) if selector.is_empty() => Vec::new(),
                Some((name, None)) => {
                    vec![format!("which labels node {name} has is not known, {selector} wanted")]
                }
                None => vec![format!("{} is no node", self.peer_name())],
            },
            Matcher::Block(block) => {
                if self.peer.addresses.is_empty() {
                    return vec![format!("the peer has no address, which {} needs", summary::block(block))];
                }
                if self.peer.addresses.iter().any(|ip| block.contains(*ip)) {
                    return Vec::new();
                }
                let of_family = self.peer.addresses.iter().find(|ip| block.net.contains(*ip));
                let ip = of_family.unwrap_or(&self.peer.addresses[0]);
                vec![match block.except.iter().find(|hole| hole.contains(ip)) {
                    Some(hole) => format!("{ip} is in {}, but in its except {hole}", block.net),
                    None => format!("{ip} is not in {}", block.net),
                }]
            }
            Matcher::Domain(pattern) => match &self.peer.names {
                known if known.as_slice().matches(pattern) == Certainty::Yes => Vec::new(),
                KnownNames::Unknown => {
                    vec![format!("which names {} has is not known, {pattern} wanted", self.peer_name())]
                }
                KnownNames::All(names) if names.is_empty() => {
                    vec![format!("DNS gave no name for {}, {pattern} wanted", self.peer_name())]
                }
                KnownNames::Some(names) => vec![format!(
                    "which names {} has beside {} is not known, {pattern} wanted",
                    self.peer_name(),
                    names.join(", ")
                )],
                KnownNames::All(names) => {
                    vec![format!("DNS gave {} for {}, {pattern} wanted", names.join(", "), self.peer_name())]
                }
            },
        }
    }

    fn peer_name(&self) -> String {
        match self.peer.addresses.first() {
            Some(ip) => ip.to_string(),
            None => "the peer".to_owned(),
        }
    }

    /// What keeps an element of `ports` from naming the port of the flow; empty where it does.
    fn port_missing(&self, port: &PortMatch) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(protocol) = port.protocol.filter(|it| *it != self.protocol) {
            missing.push(format!("{} is not {protocol}", self.protocol));
        }
        match &port.port {
            PortTest::Any => {}
            PortTest::Range(first, last) if (*first..=*last).contains(&self.port) => {}
            PortTest::Range(first, last) if first == last => {
                missing.push(format!("port {} is not {first}", self.port));
            }
            PortTest::Range(first, last) => {
                missing.push(format!("port {} is not from {first} to {last}", self.port))
            }
            PortTest::Named(name) => {
                let destination = match self.direction {
                    Direction::Egress => self.peer.pod.as_ref(),
                    Direction::Ingress => Some(self.subject),
                };
                let Some(pod) = destination else {
                    missing.push(format!("only a pod has ports with names, such as {name:?}"));
                    return missing;
                };
                let named: Vec<_> = pod.ports.iter().filter(|it| it.name == *name).collect();
                if !named.iter().any(|it| it.port == self.port && it.protocol == self.protocol) {
                    let have: Vec<_> =
                        named.iter().map(|it| format!("{} {}", it.protocol, it.port)).collect();
                    missing.push(match have.as_slice() {
                        [] => format!("the destination has no port named {name:?}"),
                        have => {
                            format!("port {} is not {name:?}, which is {}", self.port, have.join(" and "))
                        }
                    });
                }
            }
        }
        missing
    }
}

/// The first of the elements that miss least.
fn nearest(elements: impl Iterator<Item = (String, Vec<String>)>) -> PartTrace {
    let best = elements.min_by_key(|(_, missing)| missing.len());
    best.map(|(element, missing)| PartTrace { element, missing }).unwrap_or_default()
}

/// What keeps a scope from holding a pod; empty where it does.
fn pod_missing(scope: &PodScope, pod: &PodFacts) -> Vec<String> {
    let namespace = &pod.namespace;
    let mut missing = match &scope.namespaces {
        NamespaceScope::Own(own) if *own == namespace.name => Vec::new(),
        NamespaceScope::Own(own) => {
            vec![format!(
                "the pod is in namespace {}, and without a namespaceSelector only {own} is meant",
                namespace.name
            )]
        }
        NamespaceScope::Matching(selector) if selector.matches_namespace(namespace) == Certainty::Yes => {
            Vec::new()
        }
        NamespaceScope::Matching(selector) => {
            let of = |it| format!("namespace {}: {it}", namespace.name);
            selector.missing(&namespace.labels).into_iter().map(of).collect()
        }
    };
    missing.extend(scope.pods.missing(&pod.labels).into_iter().map(|it| format!("pod: {it}")));
    missing
}
