//! Where candidate policies come from: manifests, or a git revision of them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, bail, ensure};

use super::one_line;
use crate::{
    advise::what_if::{Candidate, Scope},
    cluster::Cluster,
    model::Timestamp,
    watch::manifests::{self, Loaded},
};

/// The policies to try.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The candidate policies: YAML or JSON files, or directories of them
    #[arg(short = 'f', long = "filename", value_name = "DIR|FILE", num_args = 1.., required_unless_present_any = ["revision", "no_policies"])]
    manifests: Vec<PathBuf>,
    /// Take the candidate policies from this git revision: a branch, a tag or a commit
    #[arg(long, value_name = "REV", conflicts_with = "manifests")]
    revision: Option<String>,
    /// Of the revision only what is at or below these paths
    #[arg(long, value_name = "DIR|FILE", num_args = 1.., requires = "revision")]
    path: Vec<String>,
    /// The git repository of --revision [default: the one of the current directory]
    #[arg(long, value_name = "DIR", requires = "revision")]
    repository: Option<PathBuf>,
    /// Try what happens without the policies that are replaced
    #[arg(long, conflicts_with_all = ["manifests", "revision", "keep_others"])]
    no_policies: bool,
    /// Replace the policies of this namespace only: cluster-wide ones and those of other namespaces stay as they were
    #[arg(long, value_name = "NAMESPACE", num_args = 1..)]
    replace_namespace: Vec<String>,
    /// Replace policies of the same kind, namespace and name only: all others stay as they were
    #[arg(long, conflicts_with = "replace_namespace")]
    keep_others: bool,
}

/// What is tried, and what there is to say of it.
pub(super) struct Tried {
    pub candidate: Candidate,
    /// `policies/`, or `git revision main (1a2b3c…)`.
    pub from: String,
    /// How many policies.
    pub policies: usize,
    /// What is wrong with them, or was passed over.
    pub warnings: Vec<String>,
}

impl Args {
    /// Reads the candidate.
    ///
    /// # Errors
    ///
    /// Nothing can be read, or nothing of it is a policy; git, the revision or the path is not there; a policy is outside the namespaces
    /// that are replaced.
    pub fn load(&self) -> anyhow::Result<Tried> {
        let scope = match self.replace_namespace.as_slice() {
            _ if self.keep_others => Scope::Named,
            [] => Scope::All,
            names => Scope::Namespaces(names.iter().map(|name| Arc::from(name.as_str())).collect()),
        };
        let (from, loaded) = match &self.revision {
            _ if self.no_policies => ("no policies".to_owned(), Loaded::default()),
            Some(revision) => of_revision(revision, &self.path, self.repository.as_deref())?,
            None => {
                let names: Vec<String> = self.manifests.iter().map(|it| it.display().to_string()).collect();
                (names.join(", "), manifests::load(&self.manifests)?)
            }
        };
        let mut warnings: Vec<String> =
            loaded.errors.iter().chain(&loaded.passed_over).map(ToString::to_string).collect();
        let files = loaded.files;
        let (candidate, others) = Candidate::new(loaded.into_objects(), scope)
            .with_context(|| format!("the policies of {from} are not all of the scope"))?;
        let policies = candidate.policies().len();
        if policies == 0 && !self.no_policies {
            warnings.iter().for_each(|warning| eprintln!("netaudit: {}", one_line(warning)));
            bail!("no policy in {from} ({files} files): to try what happens without any, say --no-policies");
        }
        if others > 0 {
            warnings.push(format!(
                "{others} objects of {from} are no policies and change nothing: pods, namespaces and services are as the history has them"
            ));
        }
        let mut cluster = Cluster::new();
        cluster.reset_all(candidate.policies().to_vec(), Timestamp::MIN);
        warnings.extend(cluster.warnings().map(ToString::to_string));
        Ok(Tried { candidate, from, policies, warnings })
    }
}

/// The manifests of a revision, and what to call them.
///
/// # Errors
///
/// Git, the repository, the revision or a path is not there.
pub(super) fn of_revision(
    revision: &str,
    paths: &[String],
    repository: Option<&Path>,
) -> anyhow::Result<(String, Loaded)> {
    let git = Git { repository };
    git.text(&["rev-parse", "--git-dir"])
        .context("there is no git repository here: name one with --repository DIR")?;
    let commit = format!("{revision}^{{commit}}");
    let commit = git
        .text(&["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])
        .map_err(|_| anyhow::anyhow!("there is no revision {revision:?} in this repository"))?;
    let commit = commit.trim();
    let mut files = Vec::new();
    let mut skipped = Vec::new();
    let all = [".".to_owned()];
    for path in if paths.is_empty() { &all[..] } else { paths } {
        // Without a path all of it is meant, from whichever directory.
        let listed = match path.as_str() {
            "." => git.text(&["ls-tree", "-r", "--full-tree", "-z", commit])?,
            path => git.text(&["ls-tree", "-r", "-z", commit, "--", path])?,
        };
        ensure!(
            !listed.is_empty() || path == ".",
            "there is no {path} in revision {revision} ({})",
            short(commit)
        );
        for entry in listed.split_terminator('\0') {
            let (what, name) = entry.split_once('\t').context("git ls-tree: no entry")?;
            let parts: Vec<&str> = what.split(' ').collect();
            let [mode, kind, object] = parts[..] else { bail!("git ls-tree: {what:?} is no entry") };
            // What is named itself is read whatever it is called, as files are.
            let named = if path == "." { "" } else { path.trim_start_matches("./").trim_end_matches('/') };
            let below = Path::new(name).strip_prefix(named).unwrap_or(Path::new(name));
            if !(manifests::is_read(below) || below.as_os_str().is_empty()) {
                continue;
            }
            match (mode, kind) {
                ("120000", _) => skipped.push(format!("{name} is a link, which is not followed")),
                (_, "blob") => files.push((PathBuf::from(name), object.to_owned())),
                _ => skipped.push(format!("{name} is of another repository, which is not read")),
            }
        }
    }
    files.sort();
    files.dedup();
    let contents = git.contents(&files)?;
    let named = files.iter().zip(&contents).map(|((name, _), bytes)| (name.as_path(), bytes.as_slice()));
    let loaded = manifests::load_files(named);
    skipped.iter().for_each(|it| eprintln!("netaudit: {}", one_line(it)));
    let path = if paths.is_empty() { String::new() } else { format!(" of {}", paths.join(", ")) };
    Ok((format!("git revision {revision} ({}){path}", short(commit)), loaded))
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// Plain git.
struct Git<'a> {
    repository: Option<&'a Path>,
}

impl Git<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        if let Some(repository) = self.repository {
            command.arg("-C").arg(repository);
        }
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let Output { status, stdout, stderr } = self.command(arguments).output().map_err(without_git)?;
        if !status.success() {
            let said = String::from_utf8_lossy(&stderr);
            bail!("git {}: {}", arguments.first().unwrap_or(&""), one_line(said.trim()));
        }
        String::from_utf8(stdout).context("git tells a name that is no UTF-8")
    }

    /// The contents of objects, in their order.
    fn contents(&self, files: &[(PathBuf, String)]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut command = self.command(&["cat-file", "--batch"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(without_git)?;
        let (asks, says) = (child.stdin.take(), child.stdout.take());
        let (mut asks, mut says) =
            (asks.context("a pipe to git")?, BufReader::new(says.context("a pipe from git")?));
        let wanted: String = files.iter().map(|(_, object)| format!("{object}\n")).collect();
        let contents = thread::scope(|scope| -> anyhow::Result<Vec<Vec<u8>>> {
            // Git answers while it is still asked: both pipes have an end.
            scope.spawn(move || asks.write_all(wanted.as_bytes()));
            files
                .iter()
                .map(|(name, _)| {
                    let mut head = String::new();
                    says.read_line(&mut head)?;
                    let size = head.trim_end().rsplit(' ').next().and_then(|size| size.parse::<usize>().ok());
                    let size = size.with_context(|| {
                        format!("git does not give {}: {}", name.display(), head.trim_end())
                    })?;
                    let mut bytes = vec![0; size + 1];
                    says.read_exact(&mut bytes)?;
                    bytes.pop();
                    Ok(bytes)
                })
                .collect()
        });
        let status = child.wait()?;
        let contents = contents.context("git cat-file")?;
        ensure!(status.success(), "git cat-file failed");
        Ok(contents)
    }
}

fn without_git(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow::anyhow!(
                "git is not installed here (or the repository's directory is not there), and --revision needs it"
            )
        }
        _ => anyhow::Error::new(error).context("git cannot be run"),
    }
}
