//! The dashboards against Grafana's published schema, by the TypeScript compiler. No Grafana is needed, and none is here.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::files;
use crate::{
    process::{command, on_path, run},
    tools::target,
};

/// The packages of Grafana's schema and of the compiler, with the versions that were tried.
const PACKAGES: [&str; 2] = ["@grafana/schema@13.2.3", "typescript@7.0.2"];

/// Checks every dashboard. Without npm it is left out, which is said, and fails in CI.
pub fn check(root: &Path) -> Result<()> {
    if on_path("npm").is_none() {
        ensure!(std::env::var_os("CI").is_none(), "no npm to get Grafana's schema with");
        println!("lint: SKIPPED dashboards: no npm to get Grafana's schema with");
        return Ok(());
    }
    let directory = target(root).join("tools/grafana-schema");
    fs::create_dir_all(&directory)?;
    let wanted = PACKAGES.join("\n");
    let stamp = directory.join("installed");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&*wanted) {
        println!("lint: installing {} below the target directory", PACKAGES.join(" and "));
        let options = ["install", "--prefix", ".", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"];
        run(command(&directory, "npm", options).args(PACKAGES))?;
        fs::write(&stamp, wanted)?;
    }
    fs::copy(root.join("tests/dashboards/schema.ts"), directory.join("schema.mts"))?;
    let mut sources = Vec::new();
    for path in files(root)? {
        let json = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
        // A complaint names the line of the dashboard plus one.
        let text = format!(
            "import type {{ Checked }} from './schema.mjs';\n({}) satisfies Checked;\n",
            json.trim_end()
        );
        let name = path.file_stem().context("a dashboard's name")?.to_string_lossy().into_owned() + ".mts";
        fs::write(directory.join(&name), text)?;
        sources.push(name);
    }
    let options =
        "--noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext --target es2022";
    let compiler = directory.join("node_modules/.bin/tsc").to_string_lossy().into_owned();
    run(command(&directory, &compiler, options.split(' ')).args(sources))
}
