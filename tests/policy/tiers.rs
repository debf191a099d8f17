//! The tiers around NetworkPolicy: v1alpha2's ClusterNetworkPolicy, and v1alpha1's AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy.
//!
//! Two things leave it open how a decision goes, and then every way is followed. "If two (or more) policies in the same
//! tier with the same priority could match a connection, then the implementation can apply any of the matching policies";
//! and a rule with `domainNames` of which nothing is known may match or not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    case::{By, Direction, Effect},
    matching::{list, saw, text},
    naive::{Certainty, Naive, Question, Way, name_of},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Admin,
    Baseline,
}

/// A policy of a tier that selects the pod.
struct Selecting<'a> {
    name: String,
    priority: i64,
    rules: &'a [Value],
    is_cluster: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Accept,
    Deny,
    Pass,
}

impl Action {
    fn effect(self) -> Effect {
        match self {
            Self::Accept => Effect::Allow,
            Self::Deny => Effect::Deny,
            Self::Pass => Effect::Pass,
        }
    }
}

/// The first rule of a policy that matches, or may.
struct Found {
    action: Action,
    by: By,
    certainty: Certainty,
}

impl<'a> Naive<'a> {
    /// Every way that the decision may go: Admin tier, NetworkPolicy, Baseline tier, and else it is allowed.
    pub fn decide(&self, question: &Question<'a>) -> Vec<Way> {
        self.after(self.tier(Tier::Admin, question), &|| match self.network_policies(question) {
            Some(way) => vec![way],
            None => self.after(self.tier(Tier::Baseline, question), &|| {
                vec![Way { allowed: true, by: vec![By::nobody(Effect::DefaultAllow)] }]
            }),
        })
    }

    /// Each policy that selects the pod and says something in this direction, and of each of its rules whether it
    /// matches; `None` where that is not known.
    pub fn trace(&self, question: &Question<'a>) -> BTreeMap<String, Vec<Option<bool>>> {
        let mut trace = BTreeMap::new();
        for tier in [Tier::Admin, Tier::Baseline] {
            for policy in self.selecting(tier, question).into_iter().filter(|it| !it.rules.is_empty()) {
                let certainty =
                    |rule| self.rule(rule, &policy, question).map_or(Certainty::No, |found| found.certainty);
                let matches = policy.rules.iter().map(|rule| match certainty(rule) {
                    Certainty::Maybe => None,
                    certainty => Some(certainty == Certainty::Yes),
                });
                let matches = matches.collect();
                trace.insert(policy.name, matches);
            }
        }
        for policy in self.isolating(question) {
            let rules = list(&policy["spec"], question.direction.as_str());
            let matches = rules.iter().map(|rule| Some(self.allows(rule, policy, question))).collect();
            trace.insert(format!("NetworkPolicy/{}", name_of(policy)), matches);
        }
        trace
    }

    /// A tier's ways; those without a decision go on to the next.
    fn after(&self, ways: Vec<(Option<Action>, Vec<By>)>, next: &dyn Fn() -> Vec<Way>) -> Vec<Way> {
        let mut result: Vec<Way> = Vec::new();
        for (action, by) in ways {
            match action {
                Some(action @ (Action::Accept | Action::Deny)) => {
                    result.push(Way { allowed: action == Action::Accept, by });
                }
                Some(Action::Pass) | None => {
                    for mut way in next() {
                        way.by.splice(0..0, by.clone());
                        result.push(way);
                    }
                }
            }
        }
        result
    }

    /// The ways through a tier: what is decided, `None` where no rule matches, and by which rules.
    fn tier(&self, tier: Tier, question: &Question<'a>) -> Vec<(Option<Action>, Vec<By>)> {
        let mut policies = self.selecting(tier, question);
        policies.sort_by_key(|it| it.priority);
        let mut ways = Vec::new();
        for group in policies.chunk_by(|a, b| a.priority == b.priority) {
            // Of each policy the rules that may come first: all that only may match, and the first that does.
            let found: Vec<Vec<Found>> = group.iter().map(|it| self.first_rules(it, question)).collect();
            let certain: Vec<bool> =
                found.iter().map(|it| it.last().is_some_and(|it| it.certainty == Certainty::Yes)).collect();
            let actions: Vec<Action> = found.iter().flatten().map(|it| it.action).collect();
            if actions.windows(2).any(|pair| pair[0] != pair[1])
                && found.iter().filter(|it| !it.is_empty()).count() > 1
            {
                saw(self.seen, "tier: policies of one priority differ");
            }
            ways.extend(found.into_iter().flatten().map(|it| (Some(it.action), vec![it.by])));
            if certain.contains(&true) {
                return ways;
            }
        }
        ways.push((None, Vec::new()));
        ways
    }

    fn selecting(&self, tier: Tier, question: &Question<'a>) -> Vec<Selecting<'a>> {
        let kinds = match tier {
            Tier::Admin => [("AdminNetworkPolicy", None), ("ClusterNetworkPolicy", Some("Admin"))],
            Tier::Baseline => {
                [("BaselineAdminNetworkPolicy", None), ("ClusterNetworkPolicy", Some("Baseline"))]
            }
        };
        let mut policies = Vec::new();
        for (kind, wanted) in kinds {
            for policy in self.of_kind("policy.networking.k8s.io", kind) {
                let spec = &policy["spec"];
                if wanted.is_some() && text(spec, "tier") != wanted {
                    continue;
                }
                let subject = &spec["subject"];
                if !self.is_in_namespaces_or_pods(subject, question.own).unwrap_or(false) {
                    continue;
                }
                policies.push(Selecting {
                    name: format!("{kind}/{}", name_of(policy)),
                    // The only baseline policy of v1alpha1 has none.
                    priority: spec.get("priority").and_then(Value::as_i64).unwrap_or(i64::MAX),
                    rules: list(spec, question.direction.as_str()),
                    is_cluster: wanted.is_some(),
                });
            }
        }
        policies
    }

    /// `namespaces` or `pods` of a subject or a peer; `None` where it is neither.
    fn is_in_namespaces_or_pods(&self, value: &'a Value, pod: &'a Value) -> Option<bool> {
        let everything = Value::Object(serde_json::Map::new());
        if let Some(namespaces) = value.get("namespaces") {
            return Some(self.selects_both(namespaces, &everything, pod));
        }
        let pods = value.get("pods")?;
        let selector = |name| pods.get(name).unwrap_or(&everything);
        Some(self.selects_both(selector("namespaceSelector"), selector("podSelector"), pod))
    }

    fn first_rules(&self, policy: &Selecting<'a>, question: &Question<'a>) -> Vec<Found> {
        let mut found = Vec::new();
        for (index, rule) in policy.rules.iter().enumerate() {
            let Some(mut rule) = self.rule(rule, policy, question) else { continue };
            rule.by.policy = Some(policy.name.clone());
            rule.by.rule_index = Some(index);
            let is_certain = rule.certainty == Certainty::Yes;
            found.push(rule);
            if is_certain {
                break;
            }
        }
        found
    }

    fn rule(&self, rule: &'a Value, policy: &Selecting<'a>, question: &Question<'a>) -> Option<Found> {
        let mut action = match text(rule, "action") {
            Some("Accept" | "Allow") => Action::Accept,
            Some("Deny") => Action::Deny,
            Some("Pass") => Action::Pass,
            other => panic!("no action: {other:?}"),
        };
        let mut by = By { rule_name: text(rule, "name").map(str::to_owned), ..By::nobody(action.effect()) };
        let matches: Vec<Option<Certainty>> =
            list(rule, question.direction.peers()).iter().map(|it| self.is_tier_peer(it, question)).collect();
        if matches.contains(&None) {
            // "If an implementation sees no fields are set … it should fail closed. For Accept rules: treat the rule as
            // matching no traffic. For Deny and Pass rules: treat the rule as a Deny all rule."
            if action == Action::Accept {
                saw(self.seen, "peer: unknown, accept");
                return None;
            }
            saw(self.seen, "peer: unknown, deny all");
            action = Action::Deny;
            by.effect = action.effect();
            return Some(Found { action, by, certainty: Certainty::Yes });
        }
        let certainty = matches.iter().flatten().max().copied().unwrap_or(Certainty::No);
        if certainty == Certainty::No {
            return None;
        }
        by.peer = matches.iter().position(|it| *it == Some(certainty));
        let ports = list(rule, if policy.is_cluster { "protocols" } else { "ports" });
        by.port = ports.iter().position(|it| {
            if policy.is_cluster {
                question.target.is_protocol(it, self.seen)
            } else {
                question.target.is_admin_port(it, self.seen)
            }
        });
        if by.port.is_none() && !ports.is_empty() {
            return None;
        }
        Some(Found { action, by, certainty })
    }

    /// `None` where the peer is of no kind that the API has in this direction.
    fn is_tier_peer(&self, peer: &'a Value, question: &Question<'a>) -> Option<Certainty> {
        let is_egress = question.direction == Direction::Egress;
        let (holds, what) = if peer.get("namespaces").or(peer.get("pods")).is_some() {
            let pod = question.peer.pod;
            let holds = pod.is_some_and(|pod| self.is_in_namespaces_or_pods(peer, pod).unwrap_or(false));
            let what = if peer.get("pods").is_some() { "peer: pods" } else { "peer: namespaces" };
            (holds.into(), what)
        } else if let (true, Some(nodes)) = (is_egress, peer.get("nodes")) {
            (self.is_node(nodes, &question.peer), "peer: nodes")
        } else if let (true, Some(networks)) = (is_egress, peer.get("networks")) {
            let mut networks = networks.as_array().into_iter().flatten().filter_map(Value::as_str);
            (networks.any(|it| self.in_range(it, &question.peer)).into(), "peer: networks")
        } else if is_egress && peer.get("domainNames").is_some() {
            (self.has_domain_name(list(peer, "domainNames"), &question.peer), "peer: domainNames")
        } else {
            return None;
        };
        if holds == Certainty::Yes {
            saw(self.seen, what);
        }
        Some(holds)
    }
}
