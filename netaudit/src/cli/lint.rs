//! `netaudit lint`: static faults in policies, without a cluster.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::bail;
use clap::ValueEnum;

use super::{
    Exit, lint_fix, lint_output, lint_sarif,
    manifest_files::{Loaded, load},
};
use crate::{
    advise::{
        lint::{self, Code, Finding, Manifests, Options, Report, Severity, TABLE},
        text,
    },
    audit::cni_names,
    watch::manifests::Source,
};

/// Static faults in policies that cost people days, with file, line and what to do
///
/// Reads manifests and needs no cluster. What a check could only know from objects that are not among them it does not guess: the output
/// says which checks were not made, and why. Exit status: 0 no finding of the severity that --fail-on names, 1 there are such, 2 failure, also
/// where some file could not be read (all others are checked).
#[derive(clap::Args)]
pub(super) struct Args {
    /// Manifests: YAML or JSON files, or directories of them
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// The same
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// Tell what a code means, and when it is no fault
    #[arg(long, value_name = "CODE", conflicts_with_all = ["paths", "manifests", "list", "fix"])]
    explain: Option<String>,
    /// List all codes
    #[arg(long, conflicts_with_all = ["paths", "manifests", "fix"])]
    list: bool,
    /// Silence a code; it is still counted. For one object, annotate it: netaudit/lint-ignore: "NA002: made by an operator"
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    ignore: Vec<String>,
    /// There are more objects than these: conclude nothing from what is not there
    #[arg(long)]
    partial: bool,
    /// The CNI lets a pod's own node in by rule only: check the kubelet's probes
    #[arg(long)]
    probes_need_rule: bool,
    /// The cluster's network, where no DaemonSet among the manifests tells it: flannel, calico, cilium …; for k3s, whose Flannel has an
    /// enforcer built in, kube-router
    #[arg(long, value_name = "NAME")]
    cni: Option<String>,
    /// Correct what can be corrected safely
    #[arg(long)]
    fix: bool,
    /// With --fix: change nothing, and print the difference
    #[arg(long, requires = "fix")]
    dry_run: bool,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The least severity that makes the exit status 1
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
}

/// How to print the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people: a line a finding.
    Text,
    /// One JSON object.
    Json,
    /// The same as YAML.
    Yaml,
    /// SARIF 2.1.0, as code hosts and editors read it.
    Sarif,
}

/// What makes the exit status 1.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Whatever is found.
    Note,
    /// Faults.
    Warning,
    /// Only what the API server refuses or drops.
    Error,
    /// Nothing.
    Never,
}

/// A finding that somebody has silenced.
pub(super) struct Silenced {
    pub finding: Finding,
    /// The annotation's reason; `None` for one that the command line silences.
    pub reason: Option<String>,
}

/// What is told.
pub(super) struct Told {
    pub findings: Vec<Finding>,
    pub silenced: Vec<Silenced>,
    pub skipped: Vec<lint::Skipped>,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    if args.list {
        match args.output {
            Output::Text => lint_output::list(&mut out)?,
            Output::Json => writeln!(out, "{:#}", lint_output::codes())?,
            Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&lint_output::codes())?)?,
            Output::Sarif => bail!("--list has no form in SARIF: rules are part of every answer"),
        }
        return Ok(Exit::Clean);
    }
    if let Some(code) = &args.explain {
        lint_output::explain(&mut out, code.parse::<Code>()?)?;
        return Ok(Exit::Clean);
    }
    let ignored: Vec<Code> = args.ignore.iter().map(|it| it.trim().parse()).collect::<Result<_, _>>()?;
    let paths: Vec<PathBuf> = args.paths.into_iter().chain(args.manifests).collect();
    if paths.is_empty() {
        bail!("no manifests to check: name files or directories; --list tells the {} codes", TABLE.len());
    }
    let cni = args.cni.map(|it| it.to_ascii_lowercase());
    if let Some(name) = cni.as_deref().filter(|it| !cni_names().contains(it)) {
        let known: Vec<&str> = cni_names().into_iter().collect();
        bail!("--cni {name}: there is no network of this name; known are {}", known.join(", "));
    }
    let mut loaded = load(&paths);
    // What somebody commits may hold anything; it is a failure only where all that there is was to be read.
    let unlike = std::mem::take(&mut loaded.unlike);
    if args.partial { &mut loaded.passed_over } else { &mut loaded.errors }.extend(unlike);
    let options = Options {
        // What cannot be read may hold what seems to be missing.
        is_partial: args.partial || !loaded.errors.is_empty() || loaded.is_changed,
        probes_need_rule: args.probes_need_rule,
        cni,
    };
    loaded.errors.append(&mut loaded.mistyped);
    if loaded.files.is_empty() && loaded.errors.is_empty() && !args.partial {
        bail!("no YAML or JSON file is there: nothing was checked");
    }
    let mut fixed = lint_fix::Fixed::default();
    if args.fix {
        fixed = lint_fix::fix(&mut loaded, &options, &ignored, args.dry_run);
    }
    let told = tell(lint::check(&loaded.manifests, &options), &loaded.manifests, &ignored);
    match args.output {
        // Nothing but what tools apply.
        Output::Text if args.dry_run => {
            fixed.log();
            fixed.differences().try_for_each(|it| write!(out, "{it}"))?;
        }
        Output::Text => lint_output::text(&mut out, &loaded, &told, &fixed)?,
        Output::Json => writeln!(out, "{:#}", lint_output::json(&loaded, &told, &fixed))?,
        Output::Yaml => {
            write!(out, "{}", serde_saphyr::to_string(&lint_output::json(&loaded, &told, &fixed))?)?;
        }
        Output::Sarif => {
            fixed.log();
            writeln!(out, "{:#}", lint_sarif::log(&loaded, &told))?;
        }
    }
    if args.output == Output::Text || args.output == Output::Sarif {
        for error in loaded.errors.iter().chain(&loaded.passed_over) {
            eprintln!("netaudit: {}", super::one_line(&error.to_string()));
        }
    }
    if lint_output::policies(&loaded) == 0 && !args.partial {
        eprintln!("netaudit: no policy is among the manifests: nothing was checked");
    }
    if !loaded.errors.is_empty() || fixed.has_failed() {
        return Ok(Exit::Failure);
    }
    let least = match args.fail_on {
        FailOn::Note => Severity::Note,
        FailOn::Warning => Severity::Warning,
        FailOn::Error => Severity::Error,
        FailOn::Never => return Ok(Exit::Clean),
    };
    let is_found = told.findings.iter().any(|it| it.severity >= least);
    Ok(if is_found { Exit::Findings } else { Exit::Clean })
}

/// Parts findings from those that are silenced.
fn tell(report: Report, manifests: &Manifests, ignored: &[Code]) -> Told {
    let (mut findings, mut silenced) = (Vec::new(), Vec::new());
    for finding in report.findings {
        match silencer(&finding, manifests, ignored) {
            Some(reason) => silenced.push(Silenced { finding, reason }),
            None => findings.push(finding),
        }
    }
    Told { findings, silenced, skipped: report.skipped }
}

/// Whether a finding is silenced, and by which reason of an annotation.
pub(super) fn silencer(finding: &Finding, manifests: &Manifests, ignored: &[Code]) -> Option<Option<String>> {
    let own = manifests.items[finding.item].ignored.iter().find(|(code, _)| *code == finding.code);
    match own {
        Some((_, reason)) => Some(Some(reason.clone())),
        None => ignored.contains(&finding.code).then_some(None),
    }
}

impl Loaded {
    /// Where a finding is: the file, and the place in it where one is known.
    pub fn place(&self, finding: &Finding) -> (&Source, Option<text::marks::Place>) {
        let item = &self.manifests.items[finding.item];
        let found = self.manifests.documents[item.document].find(&finding.full_path(&self.manifests));
        (&self.sources[finding.item].0, found.map(|it| it.node.pointer()))
    }

    /// `NetworkPolicy shop/web`.
    pub fn object(&self, item: usize) -> String {
        match &self.manifests.items[item].what {
            lint::What::Pods(pods) => pods.to_string(),
            lint::What::Object(object) => object.key().map(|it| it.to_string()).unwrap_or_default(),
        }
    }
}
