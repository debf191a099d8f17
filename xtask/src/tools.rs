//! Where the programs are that the demo and the tests run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Programs outside `PATH`.
pub struct Tools {
    /// Debian's directory of PostgreSQL's programs, the newest version's.
    pub postgres: PathBuf,
    /// Traefik.
    pub traefik: PathBuf,
    /// SeaweedFS, the S3 server.
    pub weed: PathBuf,
}

impl Tools {
    /// Finds them; the error says which is missing.
    pub fn find(root: &Path) -> Result<Self> {
        let venv = venv(root).join("bin");
        let tools = Self {
            postgres: newest_postgres()
                .context("no /usr/lib/postgresql/*/bin (cargo xtask setup installs it)")?,
            traefik: venv.join("traefik"),
            weed: venv.join("weed"),
        };
        for program in [&tools.traefik, &tools.weed, &tools.postgres.join("initdb")] {
            ensure!(program.exists(), "{program:?} is missing (cargo xtask setup installs it)");
        }
        Ok(tools)
    }
}

/// The directory of the Python environment that setup makes, beside cargo's own results.
pub fn venv(root: &Path) -> PathBuf {
    target(root).join("tools")
}

/// Cargo's target directory.
pub fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn newest_postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = versions.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).max()?;
    Some(Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin"))
}
