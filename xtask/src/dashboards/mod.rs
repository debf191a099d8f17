//! The dashboards: held against Grafana's published schema, and drawn from real data for the documentation.

mod answers;
mod draw;
mod schema;
mod table;
mod units;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub use schema::check;

use crate::demo::{self, history::History};

/// The dashboards' files, by name.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root.join("deploy/dashboards"))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "no dashboards below deploy/dashboards");
    Ok(files)
}

/// Draws every dashboard into the documentation, from what a real Prometheus says after some minutes of the demo's traffic.
pub fn draw(root: &Path, agent: &Path) -> Result<()> {
    let pictures = root.join("netaudit/docs/dashboards");
    fs::create_dir_all(&pictures)?;
    demo::history::record(root, agent, |history| {
        for file in files(root)? {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {file:?}"))?;
            let dashboard: Value =
                serde_json::from_str(&text).with_context(|| format!("reading {file:?}"))?;
            let picture =
                pictures.join(file.file_stem().context("a dashboard's name")?).with_extension("svg");
            let drawn = picture_of(&dashboard, history).with_context(|| format!("drawing {file:?}"))?;
            fs::write(&picture, &drawn).with_context(|| format!("writing {picture:?}"))?;
            println!("{} ({} KiB)", picture.display(), drawn.len().div_ceil(1024));
        }
        Ok(())
    })
}

fn picture_of(dashboard: &Value, history: &History) -> Result<String> {
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let panels: Vec<answers::Panel> =
        panels.iter().map(|panel| answers::Panel::ask(panel, history)).collect::<Result<_>>()?;
    draw::dashboard(dashboard, &panels, history.span())
}
