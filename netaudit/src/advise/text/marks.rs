//! Where each field of a document stands in its text.
//!
//! The values themselves are read elsewhere, by the program's one reader of manifests; this finds the place of what that has read. JSON
//! is read as the YAML that it is.

use std::ops::Range;

use granit_parser::{Event, Marker, Parser, StructureStyle};

/// A place in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// Bytes from the file's beginning, a byte order mark not counted.
    pub offset: usize,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its first character.
    pub start: Point,
    /// What follows its last one.
    pub end: Point,
}

impl Place {
    /// Its bytes.
    pub fn range(&self) -> Range<usize> {
        self.start.offset..self.end.offset
    }
}

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Text, a number, `null` …
    Scalar,
    /// A list or object in brackets.
    Flow,
    /// A list or object by indentation.
    Block,
    /// `*name`: what it stands for is elsewhere, and may be used elsewhere too.
    Alias,
}

/// A value of a document.
#[derive(Debug)]
pub struct Node {
    /// Where the value is. A list or object by indentation ends with its last value.
    pub place: Place,
    /// Where its key is, if it is an object's.
    pub key: Option<Place>,
    /// How it is written.
    pub form: Form,
    /// Whether it has an anchor, so that it may be used elsewhere too.
    pub is_anchored: bool,
    children: Children,
}

#[derive(Debug)]
enum Children {
    None,
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
}

/// The places of a document.
#[derive(Debug, Default)]
pub struct Marks {
    root: Option<Node>,
}

/// What was found of a path.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The value, or the innermost one around it that has a place of its own.
    pub node: &'a Node,
    /// Whether it is the value itself.
    pub is_whole: bool,
    /// Whether something on the way to it is written once for several places, by an anchor or a merge key.
    pub is_shared: bool,
}

/// What is being read, innermost last.
struct Open {
    node: Node,
    /// The key whose value comes next.
    key: Option<(String, Place)>,
}

impl Marks {
    /// Of the document that begins at this place of a file. A text that is no YAML has none.
    pub fn of(text: &str, start: Point) -> Self {
        let mut options = granit_parser::Options::default();
        options.set_emit_comments(false);
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        let point = |mark: &Marker| point(start, mark);
        for next in Parser::new_from_str_with_options(text, options) {
            let Ok((event, span)) = next else { break };
            let place = Place { start: point(&span.start), end: point(&span.end) };
            let node = |form, anchor: usize, children| Node {
                place,
                key: None,
                form,
                is_anchored: anchor != 0,
                children,
            };
            let form = |style| match style {
                StructureStyle::Flow => Form::Flow,
                StructureStyle::Block => Form::Block,
            };
            match event {
                Event::Scalar(text, _, anchor, _) => match open.last_mut() {
                    Some(Open { node: Node { children: Children::Object(_), .. }, key: key @ None }) => {
                        *key = Some((text.into_owned(), place));
                    }
                    _ => put(node(Form::Scalar, anchor, Children::None), &mut open, &mut root),
                },
                Event::Alias(_) => match open.last_mut() {
                    // A key by alias: no object of Kubernetes has one.
                    Some(Open { node: Node { children: Children::Object(_), .. }, key: key @ None }) => {
                        *key = Some((String::new(), place));
                    }
                    _ => put(node(Form::Alias, 0, Children::None), &mut open, &mut root),
                },
                Event::SequenceStart(style, anchor, _) => {
                    open.push(Open {
                        node: node(form(style), anchor, Children::List(Vec::new())),
                        key: None,
                    });
                }
                Event::MappingStart(style, anchor, _) => {
                    open.push(Open {
                        node: node(form(style), anchor, Children::Object(Vec::new())),
                        key: None,
                    });
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(Open { mut node, .. }) = open.pop() else { break };
                    node.place.end = match node.form {
                        Form::Flow => place.end,
                        _ => node.last_end().unwrap_or(node.place.end),
                    };
                    put(node, &mut open, &mut root);
                }
                _ => {}
            }
        }
        // Of a text that ends too early, what there was.
        while let Some(Open { node, .. }) = open.pop() {
            put(node, &mut open, &mut root);
        }
        Self { root }
    }

    /// Finds `spec.egress[0].to`, or what is around it where that has no place of its own. Keys may have dots in them.
    pub fn find(&self, path: &str) -> Option<Found<'_>> {
        let mut found = Found { node: self.root.as_ref()?, is_whole: false, is_shared: false };
        let mut rest = path;
        loop {
            found.is_shared |= found.node.is_anchored || found.node.form == Form::Alias;
            if rest.is_empty() {
                return Some(Found { is_whole: true, ..found });
            }
            let next = match &found.node.children {
                Children::None => None,
                Children::List(items) => rest
                    .strip_prefix('[')
                    .and_then(|it| it.split_once(']'))
                    .and_then(|(number, after)| Some((items.get(number.parse::<usize>().ok()?)?, after))),
                Children::Object(fields) => {
                    found.is_shared |= fields.iter().any(|(key, _)| key == "<<");
                    let rest = rest.strip_prefix('.').unwrap_or(rest);
                    let after = |key: &str| {
                        rest.strip_prefix(key).filter(|it| it.is_empty() || it.starts_with(['.', '[']))
                    };
                    let fitting =
                        fields.iter().filter_map(|(key, node)| Some((key.len(), node, after(key)?)));
                    fitting.max_by_key(|(length, ..)| *length).map(|(_, node, after)| (node, after))
                }
            };
            let Some((node, after)) = next else { return Some(found) };
            (found.node, rest) = (node, after);
        }
    }

    /// Whether this path is written, whatever its value.
    pub fn has(&self, path: &str) -> bool {
        self.find(path).is_some_and(|it| it.is_whole)
    }
}

impl Node {
    /// What a person would point at: a list or object by indentation by its key, everything else by its value.
    pub fn pointer(&self) -> Place {
        match self.key {
            Some(key) if self.form == Form::Block => key,
            _ => self.place,
        }
    }

    /// The elements of a list.
    pub fn items(&self) -> Option<&[Node]> {
        match &self.children {
            Children::List(items) => Some(items),
            _ => None,
        }
    }

    /// The fields of an object, in their order.
    pub fn fields(&self) -> Option<&[(String, Node)]> {
        match &self.children {
            Children::Object(fields) => Some(fields),
            _ => None,
        }
    }

    /// Whether it or anything in it has an anchor, by which it may be used elsewhere.
    pub fn has_anchor(&self) -> bool {
        self.is_anchored
            || match &self.children {
                Children::None => false,
                Children::Object(fields) => fields.iter().any(|(_, it)| it.has_anchor()),
                Children::List(items) => items.iter().any(Self::has_anchor),
            }
    }

    fn last_end(&self) -> Option<Point> {
        match &self.children {
            Children::None => None,
            Children::Object(fields) => fields.last().map(|(_, node)| node.place.end),
            Children::List(items) => items.last().map(|node| node.place.end),
        }
    }
}

/// Puts a value where it belongs: into what is around it, or at the top.
fn put(mut node: Node, open: &mut [Open], root: &mut Option<Node>) {
    match open.last_mut() {
        None => *root = Some(node),
        Some(Open { node: Node { children: Children::List(items), .. }, .. }) => items.push(node),
        Some(Open { node: Node { children: Children::Object(fields), .. }, key }) => match key.take() {
            Some((name, place)) => {
                // A value that is not written stands behind its key.
                node.key = Some(place);
                fields.push((name, node));
            }
            // A list or object as a key.
            None => *key = Some((String::new(), node.place)),
        },
        Some(_) => {}
    }
}

/// The place in the file of a place in the document. The parser counts lines from 1 and columns from 0.
fn point(start: Point, mark: &Marker) -> Point {
    let (line, column) = (mark.line() as u32, mark.col() as u32);
    Point {
        offset: start.offset + mark.byte_offset().unwrap_or_default(),
        line: start.line + line.saturating_sub(1),
        column: if line <= 1 { start.column + column } else { column + 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Point = Point { offset: 0, line: 1, column: 1 };

    #[track_caller]
    fn at(text: &str, path: &str) -> (u32, u32, String, bool) {
        let marks = Marks::of(text, START);
        let found = marks.find(path).expect("a document");
        let place = found.node.pointer();
        (place.start.line, place.start.column, text[place.range()].to_owned(), found.is_whole)
    }

    #[test]
    fn a_path_leads_to_the_value_or_to_the_key_of_a_block() {
        let text = "spec:\n  egress:\n  - to:\n    - ipBlock: {cidr: \"10.0.0.0/8\", except: [10.1.0.0/16]} # x\n    ports:\n      - port: 53\n";
        assert_eq!(at(text, "spec.egress"), (2, 3, "egress".to_owned(), true));
        let cidr = (4, 23, "\"10.0.0.0/8\"".to_owned(), true);
        assert_eq!(at(text, "spec.egress[0].to[0].ipBlock.cidr"), cidr);
        let except = (4, 46, "10.1.0.0/16".to_owned(), true);
        assert_eq!(at(text, "spec.egress[0].to[0].ipBlock.except[0]"), except);
        assert_eq!(at(text, "spec.egress[0].ports[0]"), (6, 9, "port: 53".to_owned(), true));
        assert_eq!(at(text, "spec.egress[0].ports[7].port"), (5, 5, "ports".to_owned(), false));
    }

    #[test]
    fn keys_may_have_dots_and_brackets() {
        let text = "matchLabels:\n  a: 1\n  a.b/c: 2\n  a.b: 3\n";
        assert_eq!(at(text, "matchLabels.a.b/c").0, 3);
        assert_eq!(at(text, "matchLabels.a.b").0, 4);
        assert_eq!(at(text, "matchLabels.a").0, 2);
    }

    #[test]
    fn json_has_places_too() {
        let text = "{\n\t\"spec\": {\"egress\": [\n\t\t{\"ports\": [{\"port\": 53}]}]}}";
        assert_eq!(at(text, "spec.egress[0].ports[0].port"), (3, 23, "53".to_owned(), true));
    }

    #[test]
    fn what_is_shared_is_known_and_a_broken_text_has_what_was_read() {
        let marks = Marks::of("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 1}\nf: 1\n", START);
        let shared = |path: &str| marks.find(path).map(|it| (it.is_shared, it.is_whole));
        assert_eq!(shared("a.b"), Some((true, true)));
        assert_eq!(shared("c.b"), Some((true, false)));
        assert_eq!(shared("d.b"), Some((true, false)));
        assert_eq!(shared("f"), Some((false, true)));
        let broken = Marks::of("a:\n  b: 1\n  c: [\n", START);
        assert!(broken.has("a.b") && !broken.has("a.c[0]"));
        assert!(Marks::of("", START).find("a").is_none());
        let deep = format!("{}1", "- ".repeat(5000));
        assert!(Marks::of(&deep, START).find("[0]").is_some());
    }

    #[test]
    fn a_document_that_begins_behind_its_marker_counts_on() {
        let marks = Marks::of(" {a: 1}\nb", Point { offset: 13, line: 4, column: 4 });
        let place = marks.find("a").unwrap().node.place;
        assert_eq!(place.start, Point { offset: 18, line: 4, column: 9 });
    }
}
