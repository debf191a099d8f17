//! Looks through all open sockets, now and then: for connections that go on, and for packet sockets.

use std::time::Duration;

use super::State;
use crate::{
    audit::Tuple,
    kernel::{Look, Looked},
    model::Timestamp,
};

/// Open connections that are taken, or judged, at once: they may all come together, and nothing waits for them.
const BATCH: usize = 512;

/// What is under way.
#[derive(Debug)]
enum Stage {
    /// Connections are being found.
    Finding(Look),
    /// All were found, and are being judged.
    Judging,
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
}

impl Looks {
    pub fn new(every: Duration, now: Timestamp) -> Self {
        Self { every, begun: None, raw_sockets: now, stage: None }
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
                looks.stage = Some(Stage::Finding(look));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "open sockets could not be looked through"),
        }
    }

    /// Takes, or judges, a few of the connections of the look that is under way. Returns how many at least.
    pub(super) fn take_open(&mut self) -> usize {
        let mut done = 0;
        let Self { looks, auditor, told, conntrack, .. } = self;
        match &mut looks.stage {
            None => return 0,
            Some(Stage::Finding(look)) => {
                let mut observe = |open| {
                    done += 1;
                    auditor.observe_open(&open, &mut told.flows);
                };
                match look.take(BATCH, &mut observe) {
                    Looked::InPart => {}
                    Looked::Whole => looks.stage = Some(Stage::Judging),
                    Looked::Failed(error) => {
                        tracing::warn!(%error, "not all open sockets could be looked through");
                        looks.stage = None;
                    }
                }
            }
            Some(Stage::Judging) => {
                let mut ask = |tuple: &Tuple| {
                    conntrack.as_mut()?.destination(tuple.protocol, tuple.source, tuple.destination)
                };
                if auditor.judge_look(BATCH, &mut ask, &mut told.flows) {
                    looks.stage = None;
                } else {
                    done = BATCH;
                }
            }
        }
        self.hand_on();
        done
    }
}
