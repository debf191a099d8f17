//! Edits of a manifest's text that touch only what they add or remove.
//!
//! Comments above an element or field, as far in as it is and without a blank line between, belong to it and go with it. Comments between
//! elements that blank lines part from the one below belong to none, and stay.

use std::{collections::BTreeSet, ops::Range};

use super::marks::{Form, Marks, Node};

/// A replacement of a part of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edit {
    /// What goes.
    pub range: Range<usize>,
    /// What comes.
    pub text: String,
}

/// Something to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tree {
    /// A word or number that needs no quotes.
    Plain(String),
    /// A text that JSON has in quotes.
    Text(String),
    /// The same, with a comment where one can be.
    Said(String, String),
    /// An object.
    Object(Vec<(&'static str, Tree)>),
    /// A list.
    List(Vec<Tree>),
}

/// The value at a path.
///
/// # Errors
/// Where it is not written at that place, or is written once for several places.
pub fn node<'a>(marks: &'a Marks, path: &str) -> Result<&'a Node, String> {
    let found = marks.find(path).filter(|it| it.is_whole);
    let found = found.ok_or_else(|| format!("{path} is not written where it is used"))?;
    match found.is_shared {
        true => Err(format!("{path} is written once for several places, by an anchor or a merge key")),
        false => Ok(found.node),
    }
}

/// Makes edits that do not overlap; those that do are left out, for another round. Returns which were made.
pub fn apply(text: &str, edits: &[Edit]) -> (String, Vec<usize>) {
    let mut order: Vec<usize> = (0..edits.len()).collect();
    order.sort_by_key(|it| (edits[*it].range.start, edits[*it].range.end));
    let (mut new, mut done, mut made) = (String::with_capacity(text.len()), 0, Vec::new());
    for it in order {
        let Edit { range, text: insert } = &edits[it];
        // Two that insert at one place are of one list: the second is made when the first can be seen.
        if range.start < done
            || made.last().is_some_and(|last: &usize| edits[*last].range.start == range.start)
        {
            continue;
        }
        new.push_str(&text[done..range.start]);
        new.push_str(insert);
        done = range.end;
        made.push(it);
    }
    new.push_str(&text[done..]);
    (new, made)
}

/// The part of a place's line before it.
fn before(text: &str, at: usize) -> &str {
    &text[line_start(text, at)..at]
}

/// Where a value ends: a text by lines ends before the line break that follows it, whatever the parser says.
fn end_of(text: &str, node: &Node) -> usize {
    let range = node.place.range();
    range.start + text[range].trim_end_matches([' ', '\n', '\r']).len()
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |it| it + 1)
}

/// Where the line ends that a place is on, its line break not counted.
fn line_end(text: &str, at: usize) -> usize {
    let end = text[at..].find('\n').map_or(text.len(), |it| at + it);
    if text[at..end].ends_with('\r') { end - 1 } else { end }
}

/// Where the line after that of a place begins.
fn next_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |it| at + it + 1)
}

/// How the lines of a text end.
fn line_break(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// The blanks and the dash before an element on its line: where others of its list begin.
fn dash(text: &str, at: usize) -> Result<(&str, &str), String> {
    let before = before(text, at);
    let lead = &before[..before.len() - before.trim_start().len()];
    let rest = &before[lead.len()..];
    match rest.strip_prefix('-') {
        Some(blanks) if !blanks.is_empty() && blanks.bytes().all(|it| it == b' ') => Ok((lead, rest)),
        _ => Err("the element does not begin a line of its own".to_owned()),
    }
}

/// Whether a text is what JSON would call it, so that what is added must be JSON too.
fn is_json(text: &str, node: &Node) -> bool {
    let range = node.place.range();
    text[range.clone()].starts_with("{\"") || text[range].contains("\":")
}

/// Where the comment lines begin that are right above a line, and as far in as it is.
fn with_comments(text: &str, line: usize, lead: usize, floor: usize) -> usize {
    let mut start = line;
    while start > floor {
        let above = line_start(text, start - 1);
        let said = &text[above..start];
        let inner = said.trim_start_matches(' ');
        if above < floor || said.len() - inner.len() != lead || !inner.starts_with('#') {
            break;
        }
        start = above;
    }
    start
}

/// Where the comment lines end that are right below a line, and farther in than `lead`.
fn with_inner_comments(text: &str, end: usize, lead: usize) -> usize {
    let mut end = end;
    while end < text.len() {
        let said = &text[end..next_line(text, end)];
        let inner = said.trim_start_matches(' ');
        if said.len() - inner.len() <= lead || !inner.starts_with('#') {
            break;
        }
        end = next_line(text, end);
    }
    end
}

/// Where ends what belongs to an element that ends on a line, at the latest at `next`: a comment that stands as far out as the dash does not.
fn own_end(text: &str, end: usize, lead: usize, next: usize) -> usize {
    let mut at = next_line(text, end);
    while at < next {
        let said = &text[at..next_line(text, at)];
        let inner = said.trim_start_matches(' ');
        if inner.starts_with('#') && said.len() - inner.len() <= lead {
            break;
        }
        at = next_line(text, at);
    }
    at.min(next)
}

/// What is on a line after its last value must be a comment, or somebody else's value would go.
fn only_comment_after(text: &str, end: usize) -> Result<(), String> {
    let rest = text[end..line_end(text, end)].trim();
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(()),
        false => Err("something else is on the line where it ends".to_owned()),
    }
}

/// Removes elements of a list; a list that loses all is written as an empty one.
///
/// # Errors
/// Where one of them is not there, or the way it is written leaves open what belongs to it.
pub fn remove_items(text: &str, list: &Node, which: &BTreeSet<usize>) -> Result<Vec<Edit>, String> {
    let items = list.items().ok_or("it is no list")?;
    if which.last().is_some_and(|last| *last >= items.len()) {
        return Err("it is not there".to_owned());
    }
    if which.iter().any(|at| items[*at].has_anchor()) {
        return Err("something in it has an anchor, and may be used elsewhere".to_owned());
    }
    match (list.form, which.len() == items.len()) {
        (Form::Flow, _) => remove_from_flow(text, list, items, which),
        (_, true) => empty_block(text, list, items).map(|it| vec![it]),
        (_, false) => remove_from_block(text, list, items, which),
    }
}

/// Elements that follow one another, as first and last.
fn runs(which: &BTreeSet<usize>) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for it in which {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *it => *last = *it,
            _ => runs.push((*it, *it)),
        }
    }
    runs
}

fn remove_from_flow(
    text: &str,
    list: &Node,
    items: &[Node],
    which: &BTreeSet<usize>,
) -> Result<Vec<Edit>, String> {
    let mut edits = Vec::new();
    for (first, last) in runs(which) {
        let range = match (first.checked_sub(1), items.get(last + 1)) {
            (_, Some(next)) => items[first].place.start.offset..next.place.start.offset,
            (Some(previous), None) => items[previous].place.end.offset..items[last].place.end.offset,
            (None, None) => list.place.start.offset + 1..list.place.end.offset - 1,
        };
        if text[range.clone()].contains('#') {
            return Err("there is a comment beside the element".to_owned());
        }
        edits.push(Edit { range, text: String::new() });
    }
    Ok(edits)
}

fn empty_block(text: &str, list: &Node, items: &[Node]) -> Result<Edit, String> {
    let key = list.key.ok_or("the list has no key")?.end.offset;
    let (first, last) = (&items[0], &items[items.len() - 1]);
    let (lead, _) = dash(text, first.place.start.offset)?;
    let end = end_of(text, last);
    only_comment_after(text, end)?;
    let (key_line, line) = (next_line(text, key), line_start(text, first.place.start.offset));
    if with_comments(text, line, lead.len(), key_line) != key_line {
        return Err(
            "there is a comment between the list and its first element that is not right above it".to_owned()
        );
    }
    // Behind the colon there may be a comment, which stays.
    let behind = text[key..].find(':').map_or(key, |it| key + it + 1);
    let comment = &text[behind..line_end(text, behind)];
    let after = with_inner_comments(text, next_line(text, end), lead.len());
    // Between elements there may be comments that are of none of them.
    let mut free = String::new();
    for pair in items.windows(2) {
        let [end, next] = [end_of(text, &pair[0]), line_start(text, pair[1].place.start.offset)];
        let next = with_comments(text, next, lead.len(), next_line(text, end));
        let mut at = own_end(text, end, lead.len(), next);
        while at < next {
            let said = &text[at..next_line(text, at)];
            if said.trim_start().starts_with('#') {
                free.push_str(said);
            }
            at = next_line(text, at);
        }
    }
    let nl = if text[..after].ends_with('\n') || !free.is_empty() { line_break(text) } else { "" };
    Ok(Edit { range: behind..after, text: format!(" []{comment}{nl}{free}") })
}

fn remove_from_block(
    text: &str,
    list: &Node,
    items: &[Node],
    which: &BTreeSet<usize>,
) -> Result<Vec<Edit>, String> {
    let key_line = list.key.map_or(0, |key| next_line(text, key.end.offset));
    let mut leads = Vec::with_capacity(items.len());
    for item in items {
        let (lead, _) = dash(text, item.place.start.offset)?;
        let line = line_start(text, item.place.start.offset);
        leads.push(with_comments(text, line, lead.len(), key_line));
    }
    let mut edits = Vec::new();
    for (first, last) in runs(which) {
        for at in first..=last {
            let end = end_of(text, &items[at]);
            only_comment_after(text, end)?;
            let lead = dash(text, items[at].place.start.offset)?.0.len();
            // The blank lines that part it from the one before go with the last one.
            let kept = text[..leads[first]].trim_end_matches([' ', '\r', '\n']).len();
            let is_tail = last + 1 == items.len();
            let start = if is_tail && at == first { next_line(text, kept) } else { leads[at] };
            let range = match leads.get(at + 1) {
                Some(next) => start..own_end(text, end, lead, *next),
                None => {
                    let after = with_inner_comments(text, next_line(text, end), lead);
                    let is_cut = after == text.len() && !text.ends_with('\n') && at == first;
                    if is_cut { kept..after } else { start..after }
                }
            };
            edits.push(Edit { range, text: String::new() });
        }
    }
    Ok(edits)
}

/// Removes a field of an object; another one must stay.
///
/// # Errors
/// Where it is not there, is the only one, or shares its line with something else.
pub fn remove_field(text: &str, object: &Node, key: &str) -> Result<Edit, String> {
    let fields = object.fields().ok_or("it is no object")?;
    let at = fields.iter().position(|(name, _)| name == key).ok_or("it is not there")?;
    let node = &fields[at].1;
    if node.has_anchor() {
        return Err("something in it has an anchor, and may be used elsewhere".to_owned());
    }
    let start = node.key.ok_or("it has no key")?.start.offset;
    let end = end_of(text, node);
    if fields.len() == 1 {
        return Err("nothing else is there".to_owned());
    }
    if object.form == Form::Flow {
        let next = fields.get(at + 1).and_then(|it| it.1.key);
        let range = match (next, at.checked_sub(1)) {
            (Some(next), _) => start..next.start.offset,
            (None, Some(previous)) => fields[previous].1.place.end.offset..end,
            (None, None) => return Err("nothing else is there".to_owned()),
        };
        if text[range.clone()].contains('#') {
            return Err("there is a comment beside it".to_owned());
        }
        return Ok(Edit { range, text: String::new() });
    }
    only_comment_after(text, end)?;
    let lead = before(text, start);
    if !lead.trim().is_empty() {
        // `- endPort: 9`, and the fields after it: they take its place behind the dash.
        let next = fields.get(at + 1).and_then(|it| it.1.key).ok_or("it shares its line with the dash")?;
        let (first, next) = (line_start(text, start), next.start.offset);
        if !before(text, next).trim().is_empty() {
            return Err("it shares its line with something else".to_owned());
        }
        // The comments above them then stand above the dash.
        let blanks = &lead[..lead.len() - lead.trim_start().len()];
        let between = text[next_line(text, end)..next].split_inclusive('\n').map(str::trim_start);
        let comments: String =
            between.filter(|it| it.starts_with('#')).map(|it| format!("{blanks}{it}")).collect();
        return Ok(Edit { range: first..next, text: format!("{comments}{lead}") });
    }
    // What is above the first field is said of the object.
    let line = match at {
        0 => line_start(text, start),
        _ => with_comments(text, line_start(text, start), lead.len(), 0),
    };
    let range = match text[end..].find('\n') {
        Some(_) => line..next_line(text, end),
        None => text[..line].trim_end_matches(['\r', '\n']).len()..text.len(),
    };
    Ok(Edit { range, text: String::new() })
}

/// Puts another value in place of a number or text, in the quotes that the old one has; where nothing else is on the line, with a comment.
pub fn set_scalar(text: &str, node: &Node, value: &str, comment: &str) -> Result<Vec<Edit>, String> {
    if node.form != Form::Scalar {
        return Err("it is no plain value".to_owned());
    }
    let range = node.place.range();
    let quote = match text[range.clone()].chars().next() {
        Some(quote @ ('"' | '\'')) => quote.to_string(),
        _ => String::new(),
    };
    let end = range.end;
    let mut edits = vec![Edit { range, text: format!("{quote}{value}{quote}") }];
    let is_last = text[end..line_end(text, end)].trim().is_empty();
    if is_last && !comment.is_empty() && !text.trim_start().starts_with('{') {
        edits.push(Edit { range: end..line_end(text, end), text: format!("  # {comment}") });
    }
    Ok(edits)
}

/// Writes elements behind one of a list, as that is written.
///
/// # Errors
/// Where the one does not begin a line of its own.
pub fn insert_items(text: &str, list: &Node, after: &Node, new: &[Tree]) -> Result<Edit, String> {
    let (start, end) = (after.place.start.offset, end_of(text, after));
    let quoted = is_json(text, after);
    if list.form == Form::Flow {
        let lead = before(text, start);
        let space = match lead.trim().is_empty() {
            true => format!("{}{lead}", line_break(text)),
            false => " ".to_owned(),
        };
        let new: String = new.iter().map(|it| format!(",{space}{}", it.flow(quoted))).collect();
        return Ok(Edit { range: end..end, text: new });
    }
    let (lead, dash) = dash(text, start)?;
    only_comment_after(text, end)?;
    let (at, nl) = (line_end(text, end), line_break(text));
    let mut lines = String::new();
    for tree in new {
        lines.push_str(nl);
        let is_inline = matches!(after.fields(), Some([(_, only)]) if only.form == Form::Flow);
        match after.form {
            Form::Block if is_inline && let Tree::Object(fields) = tree => {
                let fields = fields.iter().map(|(key, it)| format!("{key}: {}", it.flow(false)));
                lines.push_str(&format!("{lead}{dash}{}", fields.collect::<Vec<_>>().join(", ")));
            }
            Form::Flow => lines.push_str(&format!("{lead}{dash}{}", tree.flow(quoted))),
            _ => {
                let inner = format!("{lead}{}", " ".repeat(dash.len()));
                lines.push_str(&format!("{lead}{dash}{}", tree.block(&inner, nl)));
            }
        }
    }
    Ok(Edit { range: at..at, text: lines })
}

/// Writes a field behind the last one of an object or, where one is named, behind that.
///
/// # Errors
/// Where the object is empty, or something else is on the line.
pub fn add_field(
    text: &str,
    object: &Node,
    behind: Option<&str>,
    key: &str,
    value: &Tree,
) -> Result<Edit, String> {
    let fields = object.fields().ok_or("it is no object")?;
    let named = behind.and_then(|name| fields.iter().find(|(known, _)| known == name));
    let (_, last) = named.or(fields.last()).ok_or("it is empty")?;
    let end = end_of(text, last);
    if object.form == Form::Flow {
        let quoted = is_json(text, object);
        let key = if quoted { format!("\"{key}\"") } else { key.to_owned() };
        return Ok(Edit { range: end..end, text: format!(", {key}: {}", value.flow(quoted)) });
    }
    only_comment_after(text, end)?;
    let column = last.key.ok_or("it has no key")?.start;
    let written = before(text, column.offset);
    // Behind a dash the fields stand as far in as the first one.
    let indent = " ".repeat(written.chars().count());
    let (at, nl) = (line_end(text, end), line_break(text));
    let value = match value {
        Tree::List(items) => {
            let lead = format!("{indent}{}", list_indent(text, object));
            let inner = format!("{lead}  ");
            items.iter().map(|it| format!("{nl}{lead}- {}", it.block(&inner, nl))).collect()
        }
        Tree::Object(_) => format!("{nl}{indent}  {}", value.block(&format!("{indent}  "), nl)),
        plain => format!(" {}", plain.flow(false)),
    };
    Ok(Edit { range: at..at, text: format!("{nl}{indent}{key}:{value}") })
}

/// Writes elements into a list that is written as empty.
///
/// # Errors
/// Where it is not in brackets.
pub fn fill_list(text: &str, list: &Node, new: &[Tree]) -> Result<Edit, String> {
    let is_empty = list.form == Form::Flow && list.items().is_some_and(<[Node]>::is_empty);
    let range = list.place.range();
    // Of a list without elements nothing tells how a text is written; most of JSON stands before it.
    let quoted = text.trim_start().starts_with('{') && text[..range.start].trim_end().ends_with("\":");
    match is_empty && !text[range.clone()].contains('#') {
        true => Ok(Edit { range, text: Tree::List(new.to_vec()).flow(quoted) }),
        false => Err("it is written, and holds nothing".to_owned()),
    }
}

/// How much farther in than their keys the elements of lists are written, in the first list that is found.
fn list_indent(text: &str, object: &Node) -> &'static str {
    fn find(text: &str, node: &Node) -> Option<bool> {
        if let (Some(key), Form::Block, Some([first, ..])) = (node.key, node.form, node.items()) {
            let (lead, _) = dash(text, first.place.start.offset).ok()?;
            return Some(lead.chars().count() + 1 > key.start.column as usize);
        }
        let fields = node.fields().into_iter().flatten().map(|(_, it)| it);
        fields.chain(node.items().into_iter().flatten()).find_map(|it| find(text, it))
    }
    if find(text, object).unwrap_or(false) { "  " } else { "" }
}

impl Tree {
    /// In brackets, on one line.
    fn flow(&self, quoted: bool) -> String {
        let quote = |text: &str| format!("\"{text}\"");
        match self {
            Self::Plain(text) => text.clone(),
            Self::Text(text) | Self::Said(text, _) if quoted => quote(text),
            Self::Text(text) | Self::Said(text, _) => text.clone(),
            Self::Object(fields) => {
                let key = |key: &str| if quoted { quote(key) } else { key.to_owned() };
                let fields: Vec<String> =
                    fields.iter().map(|(name, it)| format!("{}: {}", key(name), it.flow(quoted))).collect();
                format!("{{{}}}", fields.join(", "))
            }
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|it| it.flow(quoted)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// By indentation; the first line stands where it is put, and the others as far in as `inner`.
    fn block(&self, inner: &str, nl: &str) -> String {
        let Self::Object(fields) = self else { return self.flow(false) };
        let deeper = format!("{inner}  ");
        let field = |(key, value): &(&str, Self)| match value {
            Self::Object(_) => format!("{key}:{nl}{deeper}{}", value.block(&deeper, nl)),
            Self::List(items) => {
                let items =
                    items.iter().map(|it| format!("{nl}{deeper}- {}", it.block(&format!("{deeper}  "), nl)));
                format!("{key}:{}", items.collect::<String>())
            }
            Self::Said(text, comment) if !comment.is_empty() => format!("{key}: {text}  # {comment}"),
            plain => format!("{key}: {}", plain.flow(false)),
        };
        fields.iter().map(field).collect::<Vec<_>>().join(&format!("{nl}{inner}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::text::marks::Point;

    fn marks(text: &str) -> Marks {
        Marks::of(text, Point { offset: 0, line: 1, column: 1 })
    }

    #[track_caller]
    fn without(text: &str, path: &str, which: &[usize]) -> String {
        let marks = marks(text);
        let list = node(&marks, path).expect("a list");
        let edits = remove_items(text, list, &which.iter().copied().collect()).expect("edits");
        let (new, made) = apply(text, &edits);
        assert_eq!(made.len(), edits.len(), "all of them are made");
        new
    }

    const SECTIONS: &str =
        "list:\n- a\n\n# of b and c\n\n# of b\n- b\n\n# of none\n\n- c  # behind c\n  # below c\nafter: 1\n";

    #[test]
    fn comments_that_blank_lines_part_from_elements_stay() {
        assert_eq!(
            without(SECTIONS, "list", &[0]),
            "list:\n# of b and c\n\n# of b\n- b\n\n# of none\n\n- c  # behind c\n  # below c\nafter: 1\n"
        );
        assert_eq!(
            without(SECTIONS, "list", &[1]),
            "list:\n- a\n\n# of b and c\n\n# of none\n\n- c  # behind c\n  # below c\nafter: 1\n"
        );
        assert_eq!(without(SECTIONS, "list", &[1, 2]), "list:\n- a\n\n# of b and c\n# of none\n\nafter: 1\n");
        assert_eq!(without(SECTIONS, "list", &[0, 1, 2]), "list: []\n# of b and c\n# of none\nafter: 1\n");
    }

    #[test]
    fn a_comment_above_what_takes_the_place_behind_the_dash_stays() {
        let text = "ports:\n-   endPort: 9\n    # of port\n    port: 8  # behind\n- port: 1\n";
        let marks = marks(text);
        let edit = remove_field(text, node(&marks, "ports[0]").expect("it"), "endPort").expect("an edit");
        assert_eq!(apply(text, &[edit]).0, "ports:\n# of port\n-   port: 8  # behind\n- port: 1\n");
    }

    #[test]
    fn what_may_be_used_elsewhere_stays() {
        let text = "list:\n- a: &it [1]\n- b: *it\n";
        let marks = marks(text);
        let list = node(&marks, "list").expect("a list");
        assert!(remove_items(text, list, &BTreeSet::from([0])).is_err());
        assert_eq!(without(text, "list", &[1]), "list:\n- a: &it [1]\n");
    }

    #[test]
    fn an_empty_list_is_filled() {
        let filled = |text: &str| {
            let marks = marks(text);
            let words = ["Ingress", "Egress"].map(|it| Tree::Text(it.to_owned()));
            fill_list(text, node(&marks, "types").expect("a list"), &words).map(|it| apply(text, &[it]).0)
        };
        assert_eq!(filled("types: []  # why\n"), Ok("types: [Ingress, Egress]  # why\n".to_owned()));
        assert_eq!(filled("{\"types\": [ ]}"), Ok("{\"types\": [\"Ingress\", \"Egress\"]}".to_owned()));
        assert!(filled("types: [a]\n").is_err() && filled("types:\n").is_err());
    }
}
