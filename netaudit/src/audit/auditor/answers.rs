//! What decides a UDP flow after it was sent: an answer, an error, a drop of its datagram, or that nothing comes.

use super::Auditor;
use crate::{
    audit::Flow,
    model::{Answer, Outcome, Timestamp},
};

impl Auditor {
    /// Takes what came back for a UDP flow. The flow is appended to `flows`, unless it still waits for somebody to become
    /// known or for a drop; one that was told already stays as it is.
    pub fn observe_answer(&mut self, answer: &Answer, now: Timestamp, flows: &mut Vec<Flow>) {
        let Some(held) = self.datagrams.answer(answer) else { return };
        if self.sees_drops && held.seen.outcome != Outcome::Answered {
            // A filter of this node that rejects both drops and answers, in either order.
            self.datagrams.hold_rejected(held, now);
        } else {
            self.judge_or_hold(&held.seen, held.number, now, flows);
        }
    }

    /// Judges the connections and datagrams for which nothing more is waited for: what was waited for was told, or has not
    /// followed.
    /// To be called after everything that the kernel told until `now` was observed, and not before.
    pub fn settle(&mut self, now: Timestamp, flows: &mut Vec<Flow>) {
        self.judge_unmet(now, now, flows);
        while let Some(held) = self.datagrams.next_beyond_drop(now) {
            if self.is_stopped(&held.seen) {
                self.judge_or_hold(&held.seen, held.number, now, flows);
            } else {
                self.datagrams.keep(held, now);
            }
        }
        while let Some(held) = self.datagrams.next_done(now) {
            self.judge_or_hold(&held.seen, held.number, now, flows);
        }
    }
}
