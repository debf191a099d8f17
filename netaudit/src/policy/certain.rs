//! Whether a flow may pass, where nothing is in doubt: the quick way for almost every question.
//!
//! The rules of a program stand here once more as a list of [`Step`]s, side by side and a quarter of a cache line each, since
//! in a large cluster fetching memory is most of what a verdict costs. A step has the ports only: most rules fail by them, and
//! the rest of a rule is fetched for the others alone. It knows no causes, and stops at the first rule that decides. Whatever
//! is not certain it leaves to [`evaluate`](super::evaluate), which says the same of everything else: in builds with debug
//! assertions, as tests are, each verdict with causes is compared with it.

use std::sync::Arc;

use super::{
    Certainty,
    compile::{PortMatch, PortTest, Rule},
    evaluate::{Asked, Program, Selected, names_port},
    loaded::{LoadedRule, PeerView},
};
use crate::model::{Action, Direction, Protocol};

/// A [`Program`] of which nothing is in doubt.
pub(super) struct Steps {
    /// Those of the Admin tier, then of the NetworkPolicies, then of the Baseline tier; each in the order of its rules.
    steps: Box<[Step]>,
    /// Where those of the NetworkPolicies begin and end.
    network: (u32, u32),
    isolated: bool,
}

/// A rule and some of its ports. A rule with several ranges of ports has as many steps, side by side.
struct Step {
    first: u16,
    last: u16,
    /// A bit for each [`Protocol`].
    protocols: u8,
    /// Whether there is more to the port than that: a name.
    named: bool,
    action: Action,
    rule: Arc<LoadedRule>,
}

/// Whether a flow may pass; `None` where that is not certain, or cannot be told without looking closer.
pub(super) fn allows(asked: &Asked<'_>) -> Option<bool> {
    asked.program.certain.as_ref()?.allows(asked)
}

const fn bit(protocol: Protocol) -> u8 {
    1 << protocol as u8
}

const EVERY_PROTOCOL: u8 = bit(Protocol::Tcp) | bit(Protocol::Udp) | bit(Protocol::Sctp);

impl Steps {
    /// `None` where something that the program holds is in doubt, two policies of a tier have one priority, or a foreign
    /// policy could turn an answer.
    pub fn new(program: &Program, direction: Direction) -> Option<Self> {
        if !is_certain(program, direction) {
            return None;
        }
        let mut steps = Vec::new();
        let mut add = |tier: &[Selected]| {
            for selected in tier {
                for (rule, loaded) in selected.loaded.shared_rules(direction) {
                    Step::of(rule, loaded, &mut steps);
                }
            }
            steps.len() as u32
        };
        let network = (add(&program.admin), add(&program.network));
        add(&program.baseline);
        Some(Self { steps: steps.into(), network, isolated: !program.network.is_empty() })
    }

    fn allows(&self, asked: &Asked<'_>) -> Option<bool> {
        let (from, to) = (self.network.0 as usize, self.network.1 as usize);
        match first(asked, &self.steps[..from])? {
            Some(Action::Allow) => return Some(true),
            Some(Action::Deny) => return Some(false),
            Some(Action::Pass) | None => {}
        }
        if self.isolated {
            return Some(first(asked, &self.steps[from..to])?.is_some());
        }
        Some(first(asked, &self.steps[to..])? != Some(Action::Deny))
    }
}

fn is_certain(program: &Program, direction: Direction) -> bool {
    let tied = |tier: &[Selected]| {
        tier.windows(2).any(|two| two[0].loaded.policy.priority == two[1].loaded.policy.priority)
    };
    let tiers = [&program.admin, &program.network, &program.baseline];
    let sure = |it: &Selected| it.doubt.is_none() && !it.loaded.is_doubtful(direction);
    program.doubts.is_empty()
        && program.foreign.is_silent()
        && !tied(&program.admin)
        && !tied(&program.baseline)
        && tiers.into_iter().flatten().all(sure)
}

impl Step {
    fn of(rule: &Rule, loaded: &Arc<LoadedRule>, steps: &mut Vec<Self>) {
        let any = Self {
            first: 0,
            last: u16::MAX,
            protocols: EVERY_PROTOCOL,
            named: false,
            action: rule.id.action,
            rule: loaded.clone(),
        };
        if rule.ports.is_empty() {
            return steps.push(any);
        }
        steps.extend(rule.ports.iter().map(|PortMatch { protocol, port, .. }| {
            let (first, last) =
                if let PortTest::Range(first, last) = port { (*first, *last) } else { (0, u16::MAX) };
            let named = matches!(port, PortTest::Named(_));
            let protocols = protocol.map_or(EVERY_PROTOCOL, bit);
            Self { first, last, protocols, named, rule: loaded.clone(), ..any }
        }));
    }
}

/// What the first rule does that matches.
fn first(asked: &Asked<'_>, steps: &[Step]) -> Option<Option<Action>> {
    let protocol = bit(asked.protocol);
    for step in steps {
        if step.protocols & protocol == 0 || asked.port < step.first || step.last < asked.port {
            continue;
        }
        if step.named && !step.rule.named_ports.iter().any(|port| names_port(asked, port)) {
            continue;
        }
        if meets(&step.rule, &asked.peer)? {
            return Some(Some(step.action));
        }
    }
    Some(None)
}

fn meets(rule: &LoadedRule, peer: &PeerView<'_>) -> Option<bool> {
    if rule.is_for(peer)? {
        return Some(true);
    }
    let mut perhaps = false;
    for listed in &rule.peers {
        match listed.matches(peer) {
            Certainty::Yes => return Some(true),
            Certainty::Maybe => perhaps = true,
            Certainty::No => {}
        }
    }
    if perhaps { None } else { Some(false) }
}
