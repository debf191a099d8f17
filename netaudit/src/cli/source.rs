//! Where a command's objects come from: manifests, or a cluster as it is now.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::{eval_flow::NOW, one_line};
use crate::{
    cluster::{Cluster, Kind},
    watch::{api, manifests},
};

/// Objects to judge by.
#[derive(clap::Args)]
pub(super) struct Source {
    /// Manifests: YAML or JSON files, or directories of them
    #[arg(short = 'f', long = "filename", value_name = "DIR|FILE", num_args = 1..)]
    pub manifests: Vec<PathBuf>,
    /// Take the objects of the cluster that the kubeconfig names, as they are now
    #[arg(long, conflicts_with = "manifests")]
    pub cluster: bool,
    /// The kubeconfig for --cluster; without it the usual one
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub kubeconfig: Option<PathBuf>,
}

/// What was read.
pub(super) struct Input {
    pub cluster: Cluster,
    /// What was passed over, and so stands in no object of the cluster.
    pub passed_over: Vec<String>,
}

impl Input {
    /// What is wrong with what was read.
    pub fn warnings(cluster: &Cluster, passed_over: &[String]) -> Vec<String> {
        let warnings = cluster.warnings().map(ToString::to_string);
        let broken = cluster.broken().map(ToString::to_string);
        warnings.chain(broken).chain(passed_over.iter().cloned()).collect()
    }
}

impl Source {
    /// Whether any was named.
    pub fn is_given(&self) -> bool {
        self.cluster || !self.manifests.is_empty()
    }

    /// Reads everything. What is wrong with single objects goes to stderr and loses nothing else.
    pub fn load(&self) -> anyhow::Result<Input> {
        let mut cluster = Cluster::new();
        let mut passed_over = Vec::new();
        if self.cluster {
            self.load_cluster(&mut cluster)?;
        } else {
            passed_over = self.load_manifests(&mut cluster)?;
        }
        for warning in cluster.warnings() {
            eprintln!("netaudit: {}", one_line(&warning.to_string()));
        }
        let implied = cluster.implied_namespaces();
        if !implied.is_empty() {
            eprintln!(
                "netaudit: no Namespace object, so no labels but the name, for: {}",
                implied.join(", ")
            );
        }
        Ok(Input { cluster, passed_over })
    }

    fn load_manifests(&self, cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
        if self.manifests.is_empty() {
            bail!("no objects to judge by: name manifests with -f, or a cluster with --cluster");
        }
        let loaded = manifests::load(&self.manifests)?;
        for error in loaded.errors.iter().chain(&loaded.passed_over) {
            eprintln!("netaudit: {}", one_line(&error.to_string()));
        }
        let passed_over = loaded.passed_over.iter().map(ToString::to_string).collect();
        if loaded.documents.is_empty() {
            bail!("no object of a kind that matters in {} files", loaded.files);
        }
        cluster.reset_all(loaded.into_objects(), NOW);
        Ok(passed_over)
    }

    fn load_cluster(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = api::connect(self.kubeconfig.as_deref()).await?;
            for kind in Kind::ALL.into_iter().filter(|kind| kind.changes_verdicts()) {
                let objects = api::list(client.clone(), kind)
                    .await
                    .with_context(|| format!("cannot list the {} of the cluster", kind.plural()))?;
                cluster.reset(kind, objects, NOW);
            }
            Ok(())
        })
    }
}
