//! What each of the agent's eBPF programs costs a load: runs and nanoseconds, as the kernel counts them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde_json::{Value, json};

/// How often each program ran and how long, by its name: of those alone that `are_ours` knows by their ids.
type Costs = BTreeMap<String, (u64, Duration)>;

/// The programs that are loaded, by id: so that those that come later can be told from them.
pub fn ids() -> Result<Vec<u32>> {
    loaded_programs().map(|info| Ok(info.context("listing eBPF programs")?.id())).collect()
}

/// Counts what programs cost beside those in `others` while `run` works, and prints it for each of `count` repetitions.
pub fn costs(load: &str, count: u32, others: &[u32], run: impl FnOnce() -> Result<()>) -> Result<Value> {
    // Counting costs some thirty nanoseconds a run itself.
    let _counting = enable_stats(Stats::RunTime).context("asking the kernel to count")?;
    let before = read(others)?;
    run()?;
    let mut printed = serde_json::Map::new();
    for (name, (runs, time)) in read(others)? {
        let (runs_before, time_before) = before.get(&name).copied().unwrap_or_default();
        let runs = (runs - runs_before) as f64 / f64::from(count);
        let each = (time - time_before).as_nanos() as f64 / f64::from(count);
        // Others of the machine go through some hooks too.
        if runs < 0.1 {
            continue;
        }
        println!("{load:<16} {name:<16} {runs:>8.2} {:>8.0} {each:>8.0}", each / runs);
        printed.insert(name, json!({"runs": runs, "ns": each}));
    }
    Ok(Value::Object(printed))
}

fn read(others: &[u32]) -> Result<Costs> {
    let mut costs = Costs::new();
    for info in loaded_programs() {
        let info = info.context("listing eBPF programs")?;
        if !others.contains(&info.id()) {
            let name = info.name_as_str().unwrap_or("?").to_owned();
            let (runs, time) = costs.entry(name).or_default();
            *runs += info.run_count();
            *time += info.run_time();
        }
    }
    Ok(costs)
}
