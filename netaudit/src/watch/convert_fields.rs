//! Reading a JSON value field by field, with the path of what is wrong.

use std::{net::IpAddr, str::FromStr};

use serde_json::Value;

/// A field that is not what the API says it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Flaw {
    pub path: String,
    pub reason: String,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// A place in an object. `null` and absent are the same, as in the API.
pub(super) struct Field<'a> {
    value: Option<&'a Value>,
    pub path: String,
}

impl<'a> Field<'a> {
    pub fn root(value: &'a Value) -> Self {
        Self { value: Some(value), path: String::new() }
    }

    pub fn is_present(&self) -> bool {
        self.value.is_some()
    }

    /// A flaw of this field.
    pub fn flaw(&self, reason: impl Into<String>) -> Flaw {
        Flaw { path: self.path.clone(), reason: reason.into() }
    }

    fn expected(&self, what: &str) -> Flaw {
        let hint = match self.value {
            Some(Value::Bool(_) | Value::Number(_)) if what == "text" => " (quotes make it text)",
            _ => "",
        };
        let found = match self.value {
            // That 1.0 is no whole number must be seen to be believed.
            Some(Value::Number(number)) if number.is_f64() => number.to_string(),
            found => found.map_or("nothing", type_name).to_owned(),
        };
        self.flaw(format!("expected {what}, found {found}{hint}"))
    }

    /// The field of this name; absent where this one is absent.
    pub fn get(&self, name: &str) -> Result<Field<'a>, Flaw> {
        let value = match self.value {
            None => None,
            Some(Value::Object(fields)) => fields.get(name),
            Some(_) => return Err(self.expected("an object")),
        };
        Ok(Field { value: value.filter(|it| !it.is_null()), path: join(&self.path, name) })
    }

    /// The field at the end of these names.
    pub fn at(&self, names: &[&str]) -> Result<Field<'a>, Flaw> {
        let mut field = Field { value: self.value, path: self.path.clone() };
        for name in names {
            field = field.get(name)?;
        }
        Ok(field)
    }

    pub fn text(&self) -> Result<Option<&'a str>, Flaw> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.expected("text")),
        }
    }

    pub fn flag(&self) -> Result<Option<bool>, Flaw> {
        match self.value {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.expected("true or false")),
        }
    }

    pub fn integer(&self) -> Result<Option<i64>, Flaw> {
        match self.value {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.expected("a whole number")),
        }
    }

    /// A port number.
    pub fn port(&self) -> Result<Option<u16>, Flaw> {
        let Some(number) = self.integer()? else { return Ok(None) };
        u16::try_from(number).map(Some).map_err(|_| self.flaw(format!("{number} is not a port")))
    }

    /// Text that stands for something, such as an address or a protocol.
    pub fn parsed<T: FromStr>(&self, what: &str) -> Result<Option<T>, Flaw> {
        match self.text()? {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| self.flaw(format!("{text:?} is not {what}"))),
        }
    }

    /// An address in canonical form; empty text is none.
    pub fn address(&self) -> Result<Option<IpAddr>, Flaw> {
        if self.text()?.is_some_and(str::is_empty) {
            return Ok(None);
        }
        Ok(self.parsed::<IpAddr>("an address")?.map(|ip| ip.to_canonical()))
    }

    /// Whether it is text, as a field may be that is a number or a name.
    pub fn is_text(&self) -> bool {
        matches!(self.value, Some(Value::String(_)))
    }

    /// The elements of a list; none where it is absent.
    pub fn items(&self) -> Result<Vec<Field<'a>>, Flaw> {
        match self.value {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok((items.iter().enumerate())
                .map(|(index, item)| Field { value: Some(item), path: format!("{}[{index}]", self.path) })
                .collect()),
            Some(_) => Err(self.expected("a list")),
        }
    }

    /// The names and fields of an object; none where it is absent.
    pub fn entries(&self) -> Result<Vec<(&'a str, Field<'a>)>, Flaw> {
        match self.value {
            None => Ok(Vec::new()),
            Some(Value::Object(fields)) => Ok((fields.iter())
                .map(|(name, value)| {
                    (name.as_str(), Field { value: Some(value), path: join(&self.path, name) })
                })
                .collect()),
            Some(_) => Err(self.expected("an object")),
        }
    }

    /// Texts in a list.
    pub fn texts(&self) -> Result<Vec<String>, Flaw> {
        self.items()?.iter().map(|it| Ok(it.text()?.ok_or_else(|| it.expected("text"))?.to_owned())).collect()
    }

    /// Labels or annotations.
    pub fn labels(&self) -> Result<Vec<(&'a str, &'a str)>, Flaw> {
        self.entries()?.iter().map(|(name, it)| Ok((*name, it.label()?))).collect()
    }

    /// A label's value. The API server keeps a key without a value as an empty one.
    pub fn label(&self) -> Result<&'a str, Flaw> {
        match self.value {
            Some(Value::Null) => Ok(""),
            _ => Ok(self.text()?.unwrap_or_default()),
        }
    }

    /// The names of its fields that are none of `known`, as paths.
    pub fn unknown(&self, known: &[&str]) -> Vec<String> {
        match self.value {
            Some(Value::Object(fields)) => (fields.keys())
                .filter(|name| !known.contains(&name.as_str()))
                .map(|name| join(&self.path, name))
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
