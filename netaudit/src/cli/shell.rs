//! What shells, `man` and kubectl want of the command line; all of it is made from the command line's own description.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use super::Exit;

/// How kubectl finds a plugin: `kubectl netaudit` runs the program of this name.
const PLUGIN: &str = "kubectl-netaudit";

/// How kubectl finds who completes the words after `kubectl netaudit`.
const COMPLETER: &str = "kubectl_complete-netaudit";

/// kubectl's words for how a shell goes on: no names of files, or as it likes.
const NO_FILES: &str = ":4";
const AS_IT_LIKES: &str = ":0";

/// Print the script that completes netaudit's commands and options in a shell
///
/// For bash: `source <(netaudit completions bash)`. In kubectl: see README.md.
#[derive(clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages, a file for each command
#[derive(clap::Args)]
pub(super) struct Man {
    /// The directory; such as /usr/local/share/man/man1
    directory: PathBuf,
}

/// Prints the script of a shell.
pub(super) fn completions(args: &Completions, mut command: Command) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "netaudit", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Clean)
}

/// Writes the manual pages.
pub(super) fn man(args: &Man, command: Command) -> anyhow::Result<Exit> {
    let directory = &args.directory;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write into {}", directory.display()))?;
    Ok(Exit::Clean)
}

/// As what the program was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name {
    /// By its own name, or any other.
    Own,
    /// By kubectl, as its plugin.
    Plugin,
    /// By kubectl, to complete words.
    Completer,
}

impl Name {
    /// By the first word of the command line.
    pub fn of(program: Option<&OsStr>) -> Self {
        let name = program.and_then(|program| Path::new(program).file_stem());
        match name.and_then(OsStr::to_str) {
            Some(PLUGIN) => Self::Plugin,
            Some(COMPLETER) => Self::Completer,
            _ => Self::Own,
        }
    }
}

/// Prints what may stand in the place of the last of these words, a line each, and how the shell goes on, as kubectl asks for it.
///
/// # Errors
///
/// It cannot be written.
pub(super) fn complete(words: &[OsString], command: Command) -> io::Result<()> {
    let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let mut out = io::stdout().lock();
    let (found, files) = candidates(&words, command);
    for (word, help) in found {
        match help.is_empty() {
            true => writeln!(out, "{word}")?,
            false => writeln!(out, "{word}\t{help}")?,
        }
    }
    writeln!(out, "{}", if files { AS_IT_LIKES } else { NO_FILES })
}

/// What may stand in the place of the last word, with what it is, and whether names of files may.
fn candidates(words: &[&str], mut command: Command) -> (Vec<(String, String)>, bool) {
    let Some((begun, before)) = words.split_last() else { return (Vec::new(), false) };
    command.build();
    let mut at = &command;
    let mut waiting: Option<&Arg> = None;
    for word in before {
        let takes = |arg: &&Arg| arg.get_action().takes_values() && is_called(arg, word);
        match at.get_arguments().find(takes) {
            // `--output=json` has its value.
            Some(arg) if !word.contains('=') => waiting = Some(arg),
            _ if waiting.is_some_and(|arg| !is_list(arg)) => waiting = None,
            _ => {
                if let Some(sub) = at.find_subcommand(word) {
                    at = sub;
                }
            }
        }
    }
    let text = |help: Option<&clap::builder::StyledStr>| {
        help.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    };
    let values = |arg: &Arg| -> Vec<(String, String)> {
        let all = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
        all.map(|value| (value.get_name().to_owned(), text(value.get_help()))).collect()
    };
    let mut found: Vec<(String, String)> = Vec::new();
    let mut files = false;
    if begun.starts_with('-') {
        let shown = at.get_arguments().filter(|arg| !arg.is_hide_set());
        let named = shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), text(arg.get_help()))));
        found.extend(named);
    } else if let Some(arg) = waiting {
        found = values(arg);
        files = found.is_empty() && arg.get_value_hint() != ValueHint::Other;
    } else {
        let commands = at.get_subcommands().filter(|command| !command.is_hide_set());
        found.extend(commands.map(|sub| (sub.get_name().to_owned(), text(sub.get_about()))));
        let positional: Vec<&Arg> = at.get_positionals().collect();
        found.extend(positional.iter().flat_map(|arg| values(arg)));
        files = found.is_empty() && !positional.is_empty();
    }
    found.retain(|(word, _)| word.starts_with(begun));
    found.sort();
    (found, files)
}

/// Whether a word names an option.
fn is_called(arg: &Arg, word: &str) -> bool {
    let name = word.split('=').next().unwrap_or(word);
    let long = name.strip_prefix("--").is_some_and(|name| arg.get_long() == Some(name));
    let short = name.strip_prefix('-').is_some_and(|name| {
        let mut letters = name.chars();
        letters.next().is_some_and(|letter| arg.get_short() == Some(letter)) && letters.next().is_none()
    });
    long || short
}

/// Whether an option takes several words.
fn is_list(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.max_values() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[&str]) -> (Vec<String>, bool) {
        let (found, files) = candidates(words, super::super::command());
        (found.into_iter().map(|(word, _)| word).collect(), files)
    }

    #[test]
    fn the_name_says_as_what_it_runs() {
        let of = |name: &str| Name::of(Some(OsStr::new(name)));
        assert_eq!(of("/usr/local/bin/kubectl-netaudit"), Name::Plugin);
        assert_eq!(of("kubectl_complete-netaudit"), Name::Completer);
        assert_eq!((of("./netaudit"), of("x"), Name::of(None)), (Name::Own, Name::Own, Name::Own));
    }

    #[test]
    fn words_are_completed_by_what_the_command_line_knows() {
        assert_eq!(found(&["li"]).0, ["lint"]);
        assert!(found(&[""]).0.contains(&"what-if".to_owned()));
        assert_eq!(found(&["flows", "--sinc"]), (vec!["--since".to_owned()], false));
        let outputs = found(&["who", "10.0.0.1", "--output", ""]).0;
        assert_eq!(outputs, ["json", "table", "yaml"]);
        assert_eq!(found(&["who", "-o", "j"]).0, ["json"]);
        // Names of files, and what nobody can know.
        assert_eq!(found(&["lint", "de"]), (vec![], true));
        assert_eq!(found(&["flows", "--output=json", ""]), (vec![], true));
        assert!(found(&["eval", "-f", "a.yaml", "--fr"]).0.contains(&"--from".to_owned()));
        assert_eq!(found(&["no-such", "x"]).0, [""; 0]);
        assert_eq!(found(&[]), (vec![], false));
    }
}
