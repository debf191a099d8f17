//! What `netaudit what-if` found, for people.

use std::io::{self, Write};

use super::{history::microsecond, one_line, what_if::Answer};
use crate::{
    advise::{
        Outcome,
        what_if::{Enforced, Row, Scope, Why},
    },
    model::Timestamp,
};

/// How many reasons of a row are shown.
const WHYS: usize = 3;

/// In which order changes are told: what breaks first.
const ORDER: [(Outcome, Outcome); 6] = [
    (Outcome::Allowed, Outcome::Denied),
    (Outcome::Unknown, Outcome::Denied),
    (Outcome::Allowed, Outcome::Unknown),
    (Outcome::Denied, Outcome::Unknown),
    (Outcome::Denied, Outcome::Allowed),
    (Outcome::Unknown, Outcome::Allowed),
];

/// What is replaced, in words.
pub(super) fn scope(scope: &Scope) -> String {
    match scope {
        Scope::All => "in place of all policies".to_owned(),
        Scope::Namespaces(names) => {
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            format!("in place of the policies of namespace {}", names.join(", "))
        }
        Scope::Named => "in place of policies of the same names, beside all others".to_owned(),
    }
}

/// Prints all.
pub(super) fn print(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    head(answer, out)?;
    for (before, after) in ORDER {
        let is_it = |row: &&Row| (row.change.before, row.change.after) == (before, after);
        let rows: Vec<&Row> = answer.changes.iter().filter(is_it).collect();
        if !rows.is_empty() {
            let flows: u64 = rows.iter().map(|row| row.flows).sum();
            writeln!(out, "\n{} → {}: {}", before.as_str(), after.as_str(), count(flows, "flow"))?;
            rows.into_iter().try_for_each(|row| print_row(row, out))?;
        }
    }
    if !answer.one_end_only.is_empty() {
        writeln!(
            out,
            "\nof these one end's policies say something else, and the connections fare as before"
        )?;
        answer.one_end_only.iter().try_for_each(|row| print_row(row, out))?;
    }
    if answer.changes.is_empty() {
        let all = if answer.complete { "" } else { " of what is known" };
        writeln!(out, "\nnothing changes{all}")?;
    }
    if answer.enforcement {
        enforcement(&answer.report.enforced(), out)?;
    }
    if !answer.complete {
        writeln!(out, "\nINCOMPLETE: what is missing may fare otherwise")?;
        answer.doubts.iter().try_for_each(|doubt| writeln!(out, "  {}", one_line(doubt)))?;
    }
    Ok(())
}

fn head(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    let compared = &answer.compared;
    let policies = match compared.policies {
        0 => String::new(),
        1 => " (1 policy)".to_owned(),
        many => format!(" ({many} policies)"),
    };
    writeln!(
        out,
        "candidate: {}{policies}, {}",
        one_line(&compared.candidate),
        one_line(&scope(&compared.scope))
    )?;
    let nodes: Vec<&str> = compared.nodes.iter().map(String::as_str).collect();
    match nodes.as_slice() {
        [] => writeln!(out, "compared with nothing: no history of objects tells which policies there were")?,
        nodes => writeln!(
            out,
            "compared with the policies of then, by the history of {}: at its end {} that give way, {} that stay",
            one_line(&nodes.join(", ")),
            compared.replaced.len(),
            compared.kept.len()
        )?,
    }
    let report = &answer.report;
    writeln!(
        out,
        "{} judged again, in {}",
        count(report.replayed, "flow"),
        many(answer.classes as u64, "class", "classes")
    )?;
    if report.folded > 0 {
        writeln!(out, "  of them {} only as sums of folded records", report.folded)?;
    }
    for it in report.unreplayed() {
        let about = match it.about.as_slice() {
            [] => String::new(),
            about => format!(" ({})", about.join(", ")),
        };
        writeln!(
            out,
            "  not judged again: {}, as {}{}, such as {}",
            count(it.flows, "flow"),
            it.reason,
            one_line(&about),
            it.example
        )?;
    }
    for it in report.still_unknown() {
        writeln!(
            out,
            "  unknown before and after: {}, as {}, such as {}",
            count(it.flows, "flow"),
            one_line(&it.by),
            it.example
        )?;
    }
    for it in report.doubts() {
        writeln!(
            out,
            "  in doubt: {} recorded as {}, which the objects of then say {} of, such as {}",
            count(it.flows, "flow"),
            it.recorded.as_str(),
            it.then.as_str(),
            it.example
        )?;
    }
    Ok(())
}

fn print_row(row: &Row, out: &mut impl Write) -> io::Result<()> {
    let directions: Vec<&str> = row.directions.iter().map(|it| it.as_str()).collect();
    writeln!(
        out,
        "  {} → {} {}/{}, {}: {} of {}, {}",
        one_line(&row.source),
        one_line(&row.destination),
        row.protocol,
        row.port,
        directions.join(" and "),
        count(row.flows, "flow"),
        match row.source.as_str() {
            "external" => many(row.sources as u64, "address", "addresses"),
            _ => count(row.sources as u64, "source"),
        },
        times(row.first, row.last)
    )?;
    if !row.addresses.is_empty() {
        let all = if row.source == "external" { row.sources } else { row.destinations };
        writeln!(out, "      outside {}", one_line(&some(&row.addresses, all)))?;
    }
    whys("before", &row.before_by, out)?;
    whys("after ", &row.after_by, out)?;
    if row.recorded_otherwise > 0 {
        writeln!(
            out,
            "      but    {} recorded with another verdict than the objects of then give",
            count(row.recorded_otherwise, "flow")
        )?;
    }
    writeln!(out, "      e.g.   {}", row.example)
}

fn enforcement(rows: &[Enforced], out: &mut impl Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "\nnothing that passes today would be stopped only because it is enforced");
    }
    writeln!(out, "\npasses today, and would be stopped after the change where policies are enforced")?;
    for row in rows {
        writeln!(
            out,
            "  {} → {} {}/{}: {}, today {}, last {}",
            one_line(&row.source),
            one_line(&row.destination),
            row.protocol,
            row.port,
            count(row.flows, "flow"),
            row.today,
            microsecond(row.last)
        )?;
        whys("after ", &row.after_by, out)?;
        writeln!(out, "      e.g.   {}", row.example)?;
    }
    Ok(())
}

fn whys(when: &str, whys: &[Why], out: &mut impl Write) -> io::Result<()> {
    for why in whys.iter().take(WHYS) {
        let of = if whys.len() > 1 { format!(" ({})", count(why.flows, "flow")) } else { String::new() };
        writeln!(out, "      {when} {}{of}", one_line(&why.by))?;
    }
    match whys.len().saturating_sub(WHYS) {
        0 => Ok(()),
        more => writeln!(out, "      {when} and {more} more reasons"),
    }
}

fn some(names: &[String], all: usize) -> String {
    let shown = names.len().min(WHYS);
    let more = match all.saturating_sub(shown) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", names[..shown].join(", "))
}

fn count(number: u64, what: &str) -> String {
    many(number, what, &format!("{what}s"))
}

fn many(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn times(first: Timestamp, last: Timestamp) -> String {
    match first == last {
        true => microsecond(first),
        false => format!("{} to {}", microsecond(first), microsecond(last)),
    }
}
