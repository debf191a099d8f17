//! Looks through all open sockets, now and then: for connections that go on, and for packet sockets.

use std::time::Duration;

use super::{State, asking};
use crate::{
    kernel::{Look, Looked},
    model::{OpenSocket, Timestamp},
};

/// Open connections that are taken, or judged, at once: they may all come together, and nothing waits for them.
const BATCH: usize = 512;

/// What is under way.
#[derive(Debug)]
enum Stage {
    /// Connections are being found: with when the latest one was.
    Finding(Look, Option<Timestamp>),
    /// All until then were found, and are being judged.
    Judging(Option<Timestamp>),
}

/// A look that has been judged, and has not been written yet.
#[derive(Clone, Copy, Debug)]
struct Unwritten {
    /// When the latest connection was found.
    until: Timestamp,
    /// Flows that the flow log will have written then.
    flows: u64,
}

/// When was looked, and what is under way.
#[derive(Debug)]
pub(super) struct Looks {
    every: Duration,
    /// When the latest look began: none did before objects were listed.
    begun: Option<Timestamp>,
    /// When packet sockets were looked for before that.
    raw_sockets: Timestamp,
    stage: Option<Stage>,
    unwritten: Option<Unwritten>,
}

impl Looks {
    pub fn new(every: Duration, now: Timestamp) -> Self {
        Self { every, begun: None, raw_sockets: now, stage: None, unwritten: None }
    }
}

impl State {
    /// Begins a look, if it is time: at connections too, once there is something to judge them by.
    pub(super) fn look_again(&mut self, now: Timestamp) {
        let Self { looks, kernel, auditor, .. } = self;
        let is_due = |since: Timestamp| now.since(since) >= looks.every;
        let begun = if looks.stage.is_some() {
            return;
        } else if auditor.is_ready() && looks.begun.is_none_or(is_due) {
            looks.begun = Some(now);
            kernel.look()
        } else if looks.begun.is_none() && is_due(looks.raw_sockets) {
            looks.raw_sockets = now;
            kernel.look_for_raw_sockets().map(|()| None)
        } else {
            return;
        };
        match begun {
            Ok(Some(look)) => {
                auditor.begin_look();
                looks.stage = Some(Stage::Finding(look, None));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "open sockets could not be looked through"),
        }
    }

    /// Takes, or judges, a few of the connections of the look that is under way. Returns how many at least.
    pub(super) fn take_open(&mut self) -> usize {
        let (mut done, mut judged) = (0, None);
        let Self { looks, auditor, told, conntrack, .. } = self;
        match &mut looks.stage {
            None => return 0,
            Some(Stage::Finding(look, latest)) => {
                let mut observe = |found: OpenSocket| {
                    done += 1;
                    match found {
                        OpenSocket::Connection(open) => {
                            *latest = (*latest).max(Some(open.looked));
                            auditor.observe_open(&open, &mut told.flows);
                        }
                        OpenSocket::BlindReader(reader) => auditor.observe_blind_reader(&reader),
                    }
                };
                match look.take(BATCH, &mut observe) {
                    Looked::InPart => {}
                    Looked::Whole => looks.stage = Some(Stage::Judging(*latest)),
                    Looked::Failed(error) => {
                        tracing::warn!(%error, "not all open sockets could be looked through");
                        looks.stage = None;
                    }
                }
            }
            Some(Stage::Judging(latest)) => {
                if auditor.judge_look(BATCH, &mut asking(conntrack), &mut told.flows) {
                    judged = *latest;
                    looks.stage = None;
                } else {
                    done = BATCH;
                }
            }
        }
        self.hand_on();
        // A look whose flows are not written by the next one is waited for first.
        if let (Some(until), None) = (judged, self.looks.unwritten) {
            let flows = self.sinks.handed();
            self.looks.unwritten = Some(Unwritten { until, flows });
        }
        done
    }

    /// Says that what looks have found is told, once the first `written` flows are written or given up.
    pub(super) fn told_open(&mut self, written: u64) {
        let Some(Unwritten { until, .. }) = self.looks.unwritten.take_if(|it| it.flows <= written) else {
            return;
        };
        if let Err(error) = self.kernel.told_open(until) {
            tracing::warn!(%error, "the next run will tell open connections again");
        }
    }
}
