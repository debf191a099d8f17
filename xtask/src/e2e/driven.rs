//! The driver's ledger in a cluster, and its comparison with what the agents of all nodes wrote.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::world::{Line, Pod, World};
use crate::account::{
    compare,
    ledger::{Count, Entry, Expected, Party},
    record::{End, Record},
};

/// How often, and how far apart, lines are waited for that should be there: machines may be slow.
const LATE: usize = 40;
const SHORTLY: Duration = Duration::from_millis(250);

/// What was driven so far.
#[derive(Default)]
pub struct Driven {
    entries: Vec<Entry>,
    /// Lines up to here have been compared, by flow id.
    compared: BTreeSet<String>,
}

impl Driven {
    /// These flows began at `from` and have ended.
    pub fn add(&mut self, what: &str, from: SystemTime, flows: &[Expected]) {
        let until = SystemTime::now();
        self.entries.extend(flows.iter().flat_map(|flow| flow.entries(what, from, until)));
    }
}

impl World {
    /// Compares everything that was driven and not yet compared, one by one, and fails with all differences.
    ///
    /// Left out are flows that nobody drives one by one: with the node at one end (probes, the API server, masqueraded
    /// visitors), and of a pod with itself (exec probes, the S3 server's parts). They have checks of their own; here only
    /// this holds: none is denied.
    pub fn compare(&mut self, phase: &str) -> anyhow::Result<()> {
        let mut ledger = std::mem::take(&mut self.driven.entries);
        self.excuse_folded(&mut ledger);
        let least = compare::least(&ledger);
        for _ in 0..LATE {
            self.settle()?;
            if self.fresh().filter(|line| is_driven(&line.record)).count() >= least {
                break;
            }
        }
        let mut differences = Vec::new();
        let mut records: Vec<Record> = Vec::new();
        for line in self.fresh() {
            if is_background(&line.record) {
                if line.record.verdict == "denied" {
                    differences.push(format!("nothing may deny this:\n    {}", line.record.line()));
                }
                continue;
            }
            if !is_of_the_scenario(&line.record) {
                continue;
            }
            differences.extend(self.misplaced(line));
            records.push(line.record.clone());
        }
        differences.extend(compare::flows(&ledger, &records));
        println!("e2e: {phase}: {} ledger entries, {} records", ledger.len(), records.len());
        self.driven.compared = self.lines().map(|line| line.record.flow_id.clone()).collect();
        anyhow::ensure!(
            differences.is_empty(),
            "{phase}: {} differences:\n{}",
            differences.len(),
            differences.join("\n")
        );
        Ok(())
    }

    /// Lines that no comparison has taken yet.
    pub fn fresh(&self) -> impl Iterator<Item = &Line> {
        self.lines().filter(|line| !self.driven.compared.contains(&line.record.flow_id))
    }

    /// An error unless exactly `count` fresh lines satisfy `holds`; waits for those that are late.
    pub fn expect(&mut self, what: &str, count: usize, holds: impl Fn(&Line) -> bool) -> anyhow::Result<()> {
        let mut got = 0;
        for _ in 0..LATE {
            got = self.fresh().filter(|line| holds(line)).count();
            if got >= count {
                break;
            }
            std::thread::sleep(SHORTLY);
            self.collect()?;
        }
        let all = || {
            // Probes and scrapes are many, and hardly ever what is looked for.
            let is_plain = |line: &&Line| {
                let reason = line.record.reason.as_deref().unwrap_or_default();
                !["own node", "host network", "loopback"].contains(&reason)
            };
            let lines: Vec<String> = self
                .fresh()
                .filter(is_plain)
                .map(|line| format!("    {} {}", line.node, line.record.line()))
                .collect();
            lines.join("\n")
        };
        anyhow::ensure!(
            got == count,
            "{what}: {got} lines say so, and {count} should. All but probes:\n{}",
            all()
        );
        Ok(())
    }

    /// Everything until now is left out of comparisons.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.settle()?;
        self.driven.entries.clear();
        self.driven.compared = self.lines().map(|line| line.record.flow_id.clone()).collect();
        Ok(())
    }

    /// A server's peer that was told in an earlier phase need not be told again so soon.
    fn excuse_folded(&self, ledger: &mut [Entry]) {
        let told: BTreeSet<(Party, Party, u16)> = self
            .lines()
            .filter(|line| {
                self.driven.compared.contains(&line.record.flow_id) && line.record.outcome == "received"
            })
            .filter_map(|line| {
                Some((line.record.subject.party().ok()?, line.record.peer.party().ok()?, line.record.port))
            })
            .collect();
        for entry in ledger {
            if let Count::Folded(most) = entry.count
                && told.contains(&(entry.subject.clone(), entry.peer.clone(), entry.port))
            {
                entry.count = Count::UpTo(most);
            }
        }
    }

    /// A record by another node's agent than the subject's own.
    fn misplaced(&self, line: &Line) -> Option<String> {
        let on = line.record.subject.node.as_deref().unwrap_or(&line.node);
        (on != line.node).then(|| {
            format!("written on {}, but its subject is on {on}:\n    {}", line.node, line.record.line())
        })
    }
}

fn is_background(record: &Record) -> bool {
    let itself = record.subject.pod.is_some()
        && (&record.subject.namespace, &record.subject.pod) == (&record.peer.namespace, &record.peer.pod);
    itself
        || [&record.subject, &record.peer].iter().any(|end| ["node", "loopback"].contains(&end.kind.as_str()))
}

/// Whether the scenario may have driven this.
pub fn is_driven(record: &Record) -> bool {
    !is_background(record) && is_of_the_scenario(record)
}

fn is_of_the_scenario(record: &Record) -> bool {
    let namespaces = World::scenario_namespaces();
    let known = |end: &End| end.namespace.as_deref().is_some_and(|namespace| namespaces.contains(namespace));
    known(&record.subject) || known(&record.peer)
}

/// Whether an end is this pod.
pub fn is(end: &End, pod: &Pod) -> bool {
    end.namespace.as_deref() == Some(&pod.namespace) && end.pod.as_deref() == Some(&pod.name)
}
