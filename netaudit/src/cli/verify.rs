//! `netaudit verify`: whether the evidence of an incident is what was packed.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use serde_json::json;

use super::{
    Exit,
    export::{Output, completeness, summary},
    one_line,
};
use crate::store::bundle::verify::verify;

/// Check a bundle of evidence: every digest, that nothing is missing, added or in doubt, and that it holds what it says
///
/// Says all that is wrong. Nothing is judged again: for that, unpack it and ask netaudit why FLOW_ID --flow-store DIRECTORY.
/// Exit status: 0 sound, 1 not, 2 it cannot be read.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A file that netaudit export made
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// The digest that was printed when it was made: without it, whoever changes everything alike is not noticed
    #[arg(long, value_name = "SHA256", value_parser = digest)]
    digest: Option<String>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn digest(text: &str) -> Result<String, String> {
    let is_one = text.len() == 64 && text.chars().all(|letter| letter.is_ascii_hexdigit());
    if is_one { Ok(text.to_owned()) } else { Err("a sha256 has 64 hexadecimal digits".to_owned()) }
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let verified = verify(&args.bundle, args.digest.as_deref())?;
    let is_sound = verified.problems.is_empty();
    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => {
            let word = if is_sound { "sound" } else { "NOT SOUND" };
            writeln!(out, "{}: {word}", args.bundle.display())?;
            for problem in &verified.problems {
                writeln!(out, "  {}", one_line(problem))?;
            }
            if let Some(manifest) = &verified.manifest {
                writeln!(out, "{}", summary(manifest))?;
                completeness(&mut out, manifest)?;
            }
            if let Some(digest) = &verified.digest {
                let known =
                    if args.digest.is_some() { "" } else { " (compare it with what was written down)" };
                writeln!(out, "sha256 of its manifest: {digest}{known}")?;
            }
        }
        Output::Json => {
            let manifest = verified.manifest.as_ref();
            let told = json!({
                "bundle": args.bundle.display().to_string(), "sound": is_sound, "problems": verified.problems,
                "digest": verified.digest, "digest_known": args.digest.is_some(), "members": verified.members,
                "incident": manifest.map(|it| &it.incident), "flows": manifest.map(|it| it.flows),
                "since": manifest.map(|it| it.since), "until": manifest.map(|it| it.until),
                "complete": manifest.map(|it| it.complete), "missing": manifest.map(|it| &it.missing),
            });
            writeln!(out, "{told:#}")?;
        }
    }
    Ok(if is_sound { Exit::Clean } else { Exit::Findings })
}
