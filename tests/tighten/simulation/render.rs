//! Policies as people write them: in many styles, with comments above and behind.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::policy::random::Random;

/// A file with policies.
pub struct File {
    pub name: String,
    pub text: String,
    pub comments: Vec<Comment>,
}

/// A comment, and to what it belongs.
pub struct Comment {
    /// No other one has it.
    pub text: String,
    /// The policy, by its number; `None` where it belongs to the document.
    pub policy: Option<usize>,
    /// `spec.egress[0].to[1]`.
    pub path: String,
}

/// How a document is written.
struct Style {
    form: Form,
    /// Whether the elements of lists stand farther in than their keys.
    dashes_in: bool,
    /// Chances.
    flow: u64,
    quotes: u64,
    comments: u64,
    blanks: u64,
    anchors: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Block,
    /// YAML in brackets, on one line or many.
    Flow,
    Json,
    PrettyJson,
}

/// What writes one document.
struct Writer<'a> {
    random: &'a mut Random,
    style: Style,
    out: String,
    comments: Vec<Comment>,
    /// Of a file.
    said: usize,
    /// Which policy it is, or which of the items of a list are which.
    policies: Vec<usize>,
    is_list: bool,
    anchors: BTreeMap<String, String>,
    /// The whole document, as JSON: only what is in it twice has an anchor.
    whole: String,
}

/// Writes all policies, each into one of some files.
pub fn render(policies: &[Value], random: &mut Random) -> Vec<File> {
    let mut files = Vec::new();
    let mut number = 0;
    while number < policies.len() {
        let count = random.between(1, 3).min(policies.len() - number);
        let mine: Vec<usize> = (number..number + count).collect();
        number += count;
        files.push(file(files.len(), policies, &mine, random));
    }
    files
}

fn file(number: usize, policies: &[Value], mine: &[usize], random: &mut Random) -> File {
    let mut file =
        File { name: format!("policies-{number}.yaml"), text: String::new(), comments: Vec::new() };
    let as_list = random.percent(15);
    let documents: Vec<Vec<usize>> =
        if as_list { vec![mine.to_vec()] } else { mine.iter().map(|it| vec![*it]).collect() };
    for (place, of) in documents.into_iter().enumerate() {
        let form = match random.below(10) {
            0 => Form::Json,
            1 => Form::PrettyJson,
            2 => Form::Flow,
            _ => Form::Block,
        };
        let style = Style {
            form,
            dashes_in: random.percent(50),
            flow: *random.pick(&[0, 0, 10, 40]),
            quotes: *random.pick(&[0, 10, 100]),
            comments: *random.pick(&[0, 10, 40]),
            blanks: *random.pick(&[0, 0, 20]),
            anchors: random.percent(10),
        };
        let value = match as_list {
            true => {
                let items: Vec<&Value> = of.iter().map(|it| &policies[*it]).collect();
                json!({"apiVersion": "v1", "kind": "List", "items": items})
            }
            false => policies[of[0]].clone(),
        };
        if place > 0 || random.percent(30) {
            file.text.push_str("---\n");
        }
        let mut writer = Writer {
            random,
            style,
            out: String::new(),
            comments: Vec::new(),
            said: file.comments.len(),
            policies: of,
            is_list: as_list,
            anchors: BTreeMap::new(),
            whole: value.to_string(),
        };
        writer.document(&value);
        file.text.push_str(&writer.out);
        file.comments.append(&mut writer.comments);
    }
    if random.percent(15) {
        file.text = file.text.replace('\n', "\r\n");
    }
    if random.percent(10) {
        file.text.truncate(file.text.trim_end_matches(['\r', '\n']).len());
    }
    if random.percent(4) {
        file.text.insert(0, '\u{feff}');
    }
    file
}

impl Writer<'_> {
    fn document(&mut self, value: &Value) {
        match self.style.form {
            Form::Block => {
                if self.wants_comment() {
                    let comment = self.comment_of_document();
                    self.out.push_str(&format!("{comment}\n"));
                }
                self.block(value, 0, "", false);
                if self.wants_comment() {
                    let comment = self.comment_of_document();
                    self.out.push_str(&format!("{comment}\n"));
                }
            }
            Form::Flow => {
                let many = self.random.percent(50).then_some(0);
                let text = self.flow(value, false, many);
                self.out.push_str(&format!("{text}\n"));
            }
            Form::Json => {
                let text = self.flow(value, true, None);
                self.out.push_str(&format!("{text}\n"));
            }
            Form::PrettyJson => {
                let text = self.flow(value, true, Some(0));
                self.out.push_str(&format!("{text}\n"));
            }
        }
    }

    fn wants_comment(&mut self) -> bool {
        self.random.percent(self.style.comments)
    }

    /// Of what stands at a path of the document.
    fn comment(&mut self, path: &str) -> String {
        let (policy, path) = match self.is_list {
            false => (Some(self.policies[0]), path),
            true => match path.strip_prefix("items[").and_then(|it| it.split_once(']')) {
                Some((at, rest)) => {
                    let at: usize = at.parse().expect("a place");
                    (Some(self.policies[at]), rest.trim_start_matches('.'))
                }
                None => (None, path),
            },
        };
        self.say(policy, path.to_owned())
    }

    fn comment_of_document(&mut self) -> String {
        self.say(None, String::new())
    }

    fn say(&mut self, policy: Option<usize>, path: String) -> String {
        let text = format!(
            "note {}: {}",
            self.said,
            self.random.pick(&["why", "see - [x]: y", "'quoted\" #", "größer → ✓"])
        );
        self.said += 1;
        self.comments.push(Comment { text: text.clone(), policy, path });
        format!("# {text}")
    }

    /// A value by indentation; `behind_dash` where its first line stands behind one.
    fn block(&mut self, value: &Value, indent: usize, path: &str, behind_dash: bool) {
        match value {
            Value::Object(fields) => self.block_object(fields, indent, path, behind_dash),
            Value::Array(items) => self.block_list(items, indent, path),
            _ => unreachable!("a value that is written behind its key"),
        }
    }

    fn block_object(&mut self, fields: &Map<String, Value>, indent: usize, path: &str, behind_dash: bool) {
        let mut keys: Vec<&String> = fields.keys().collect();
        for at in (1..keys.len()).rev() {
            keys.swap(at, self.random.below(at + 1));
        }
        for (number, key) in keys.into_iter().enumerate() {
            let value = &fields[key];
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let pad = " ".repeat(indent);
            let is_behind = behind_dash && number == 0;
            if !is_behind {
                if self.wants_comment() && self.random.percent(40) {
                    self.above(&path, &pad);
                }
                self.out.push_str(&pad);
            }
            self.out.push_str(&format!("{key}:"));
            let is_empty = match value {
                Value::Object(it) => it.is_empty(),
                Value::Array(it) => it.is_empty(),
                _ => true,
            };
            if let Some(text) = value.as_str().filter(|it| it.contains('\n')) {
                self.out.push_str(" |\n");
                for line in text.lines() {
                    self.out.push_str(&format!("{pad}  {line}\n"));
                }
                continue;
            }
            if is_empty || self.random.percent(self.style.flow) {
                let many = self.random.percent(20).then_some(indent + 2);
                let text = self.flow(value, false, many);
                self.out.push_str(&format!(" {text}"));
                self.behind(&path);
                continue;
            }
            if self.style.anchors && value.is_array() && self.whole.matches(&value.to_string()).count() > 1 {
                let name = format!("a{}", self.anchors.len());
                match self.anchors.get(&value.to_string()) {
                    Some(name) => {
                        self.out.push_str(&format!(" *{name}\n"));
                        continue;
                    }
                    None => {
                        self.out.push_str(&format!(" &{name}"));
                        self.anchors.insert(value.to_string(), name);
                    }
                }
            }
            self.behind(&path);
            let deeper = match value {
                Value::Array(_) if !self.style.dashes_in => indent,
                _ => indent + 2,
            };
            self.block(value, deeper, &path, false);
        }
    }

    /// A comment above something, most often as far in as that is.
    fn above(&mut self, path: &str, pad: &str) {
        let comment = self.comment(path);
        let pad = if self.random.percent(6) { "" } else { pad };
        self.out.push_str(&format!("{pad}{comment}\n"));
    }

    /// The end of a line, with a comment of what stands on it.
    fn behind(&mut self, path: &str) {
        if self.wants_comment() {
            let comment = self.comment(path);
            self.out.push_str(&format!("  {comment}"));
        }
        self.out.push('\n');
    }

    fn block_list(&mut self, items: &[Value], indent: usize, path: &str) {
        let pad = " ".repeat(indent);
        for (at, item) in items.iter().enumerate() {
            let own = format!("{path}[{at}]");
            if at > 0 && self.random.percent(self.style.blanks) {
                self.out.push('\n');
                // It stands for itself: blank lines part it from what is above and below.
                if self.wants_comment() {
                    let comment = self.comment(path);
                    self.out.push_str(&format!("{pad}{comment}\n\n"));
                }
            }
            while self.wants_comment() && self.random.percent(70) {
                self.above(&own, &pad);
            }
            self.out.push_str(&format!("{pad}-"));
            let is_empty = item.as_object().is_none_or(Map::is_empty);
            if is_empty || self.random.percent(self.style.flow) {
                let text = self.flow(item, false, None);
                self.out.push_str(&format!(" {text}"));
                self.behind(&own);
            } else {
                let dash = if self.random.percent(90) { 2 } else { 4 };
                self.out.push_str(&" ".repeat(dash - 1));
                self.block(item, indent + dash, &own, true);
            }
        }
    }

    /// A value in brackets; on many lines where it is said how far in.
    fn flow(&mut self, value: &Value, quoted: bool, indent: Option<usize>) -> String {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let mut keys: Vec<&String> = fields.keys().collect();
                for at in (1..keys.len()).rev() {
                    keys.swap(at, self.random.below(at + 1));
                }
                let parts: Vec<String> = keys
                    .into_iter()
                    .map(|key| {
                        let name = if quoted { format!("\"{key}\"") } else { key.clone() };
                        format!("{name}: {}", self.flow(&fields[key], quoted, indent.map(|it| it + 2)))
                    })
                    .collect();
                bracketed(("{", "}"), &parts, indent)
            }
            Value::Array(items) if !items.is_empty() => {
                let parts: Vec<String> =
                    items.iter().map(|it| self.flow(it, quoted, indent.map(|it| it + 2))).collect();
                bracketed(("[", "]"), &parts, indent)
            }
            Value::Object(_) => "{}".to_owned(),
            Value::Array(_) => "[]".to_owned(),
            Value::String(text) if quoted || text.starts_with(':') || text.contains(['#', '\n']) => {
                serde_json::to_string(text).expect("text")
            }
            Value::String(text) if self.random.percent(self.style.quotes) => {
                let quote = *self.random.pick(&["'", "\""]);
                format!("{quote}{text}{quote}")
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}

fn bracketed((open, close): (&str, &str), parts: &[String], indent: Option<usize>) -> String {
    match indent {
        None => format!("{open}{}{close}", parts.join(", ")),
        Some(indent) => {
            let (outer, inner) = (" ".repeat(indent), " ".repeat(indent + 2));
            format!("{open}\n{inner}{}\n{outer}{close}", parts.join(&format!(",\n{inner}")))
        }
    }
}
