//! The functions of templates: Go's own and those that Docker adds.

use std::cmp::Ordering;

use serde_json::Value;

use super::TemplateError;
use super::eval::{text_of, truth};

/// Widest padding that `pad` and `printf` make.
const MAX_WIDTH: usize = 4096;

macro_rules! functions {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A function that templates may call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Function { $($variant),+ }

        impl Function {
            /// By the name in the template. `None`: there is no such function.
            pub(super) fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

functions! {
    And = "and", Or = "or", Not = "not",
    Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge",
    Len = "len", Index = "index",
    Print = "print", Println = "println", Printf = "printf",
    Json = "json", Join = "join", Split = "split", Upper = "upper", Lower = "lower", Title = "title",
    Pad = "pad", Truncate = "truncate",
}

impl Function {
    /// Calls it; a piped value comes last.
    pub(super) fn call(self, arguments: &[Value]) -> Result<Value, TemplateError> {
        match self {
            Self::And => self.first_with(arguments, false),
            Self::Or => self.first_with(arguments, true),
            Self::Not => Ok(Value::Bool(!truth(self.one(arguments)?))),
            Self::Eq => self.equal(arguments).map(Value::Bool),
            Self::Ne => {
                let [left, right] = self.two(arguments)?;
                Ok(Value::Bool(!same(left, right)))
            }
            Self::Lt => self.compare(arguments, Ordering::is_lt),
            Self::Le => self.compare(arguments, Ordering::is_le),
            Self::Gt => self.compare(arguments, Ordering::is_gt),
            Self::Ge => self.compare(arguments, Ordering::is_ge),
            Self::Len => self.length(self.one(arguments)?),
            Self::Index => self.index(arguments),
            Self::Print => Ok(Value::String(print(arguments, false))),
            Self::Println => Ok(Value::String(print(arguments, true))),
            Self::Printf => match arguments.split_first() {
                Some((Value::String(format), rest)) => Ok(Value::String(printf(format, rest))),
                _ => Err(self.wrong("needs a format first")),
            },
            Self::Json => serde_json::to_string(self.one(arguments)?)
                .map(Value::String)
                .map_err(|error| self.wrong(&error.to_string())),
            Self::Join => self.join(arguments),
            Self::Split => {
                let [text, separator] = self.two(arguments)?;
                let (text, separator) = (self.text(text)?, self.text(separator)?);
                Ok(text.split(separator).map(Value::from).collect())
            }
            Self::Upper => Ok(self.text(self.one(arguments)?)?.to_uppercase().into()),
            Self::Lower => Ok(self.text(self.one(arguments)?)?.to_lowercase().into()),
            Self::Title => Ok(title(self.text(self.one(arguments)?)?).into()),
            Self::Pad => self.pad(arguments),
            Self::Truncate => {
                let [text, length] = self.two(arguments)?;
                let length = self.size(length)?;
                Ok(self.text(text)?.chars().take(length).collect::<String>().into())
            }
        }
    }

    fn wrong(self, why: &str) -> TemplateError {
        TemplateError::new(format!("error calling {}: {why}", self.name()))
    }

    fn one(self, arguments: &[Value]) -> Result<&Value, TemplateError> {
        match arguments {
            [value] => Ok(value),
            _ => Err(self.wrong(&format!("needs 1 argument, got {}", arguments.len()))),
        }
    }

    fn two(self, arguments: &[Value]) -> Result<[&Value; 2], TemplateError> {
        match arguments {
            [left, right] => Ok([left, right]),
            _ => Err(self.wrong(&format!("needs 2 arguments, got {}", arguments.len()))),
        }
    }

    fn text(self, value: &Value) -> Result<&str, TemplateError> {
        value.as_str().ok_or_else(|| self.wrong(&format!("{} is not a string", text_of(value))))
    }

    fn size(self, value: &Value) -> Result<usize, TemplateError> {
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.wrong(&format!("{} is not a length", text_of(value))))
    }

    /// `and` and `or`: the first argument that decides, else the last.
    fn first_with(self, arguments: &[Value], wanted: bool) -> Result<Value, TemplateError> {
        arguments
            .iter()
            .find(|value| truth(value) == wanted)
            .or(arguments.last())
            .cloned()
            .ok_or_else(|| self.wrong("needs an argument"))
    }

    fn equal(self, arguments: &[Value]) -> Result<bool, TemplateError> {
        match arguments.split_first() {
            Some((first, rest)) if !rest.is_empty() => Ok(rest.iter().any(|other| same(first, other))),
            _ => Err(self.wrong("needs 2 arguments")),
        }
    }

    fn compare(self, arguments: &[Value], wanted: fn(Ordering) -> bool) -> Result<Value, TemplateError> {
        let [left, right] = self.two(arguments)?;
        let order = match (left, right) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (Value::Number(left), Value::Number(right)) => {
                left.as_f64().zip(right.as_f64()).and_then(|(left, right)| left.partial_cmp(&right))
            }
            _ => None,
        };
        order.map(|order| Value::Bool(wanted(order))).ok_or_else(|| self.wrong("incompatible types for comparison"))
    }

    fn length(self, value: &Value) -> Result<Value, TemplateError> {
        match value {
            Value::String(text) => Ok(text.len().into()),
            Value::Array(items) => Ok(items.len().into()),
            Value::Object(map) => Ok(map.len().into()),
            Value::Null => Ok(0.into()),
            Value::Bool(_) | Value::Number(_) => Err(self.wrong(&format!("len of {}", text_of(value)))),
        }
    }

    fn index(self, arguments: &[Value]) -> Result<Value, TemplateError> {
        let (first, keys) = arguments.split_first().ok_or_else(|| self.wrong("needs an argument"))?;
        let mut value = first;
        for key in keys {
            value = match value {
                Value::Array(items) => {
                    let at = self.size(key)?;
                    items
                        .get(at)
                        .ok_or_else(|| self.wrong(&format!("index {at} is beyond a list of {}", items.len())))?
                }
                Value::Object(map) => match map.get(self.text(key)?) {
                    Some(inner) => inner,
                    None => return Ok(Value::Null),
                },
                Value::Null => return Ok(Value::Null),
                other => return Err(self.wrong(&format!("can't index {}", text_of(other)))),
            };
        }
        Ok(value.clone())
    }

    fn join(self, arguments: &[Value]) -> Result<Value, TemplateError> {
        let [list, separator] = self.two(arguments)?;
        let separator = self.text(separator)?;
        match list {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(text_of).collect();
                Ok(items.join(separator).into())
            }
            Value::Null => Ok(String::new().into()),
            other => Err(self.wrong(&format!("{} is not a list", text_of(other)))),
        }
    }

    fn pad(self, arguments: &[Value]) -> Result<Value, TemplateError> {
        let [text, before, after] = arguments else {
            return Err(self.wrong("needs 3 arguments"));
        };
        let (before, after) = (self.size(before)?, self.size(after)?);
        let text = self.text(text)?;
        if text.is_empty() {
            return Ok(String::new().into());
        }
        let (before, after) = (before.min(MAX_WIDTH), after.min(MAX_WIDTH));
        Ok(format!("{}{text}{}", " ".repeat(before), " ".repeat(after)).into())
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        _ => left == right,
    }
}

/// Upper-cases the first letter of each word.
pub(crate) fn title(text: &str) -> String {
    let mut start = true;
    text.chars()
        .map(|c| {
            let upper = if start { c.to_ascii_uppercase() } else { c };
            start = c.is_whitespace();
            upper
        })
        .collect()
}

fn print(arguments: &[Value], line: bool) -> String {
    let texts: Vec<String> = arguments.iter().map(text_of).collect();
    if line { format!("{}\n", texts.join(" ")) } else { texts.concat() }
}

/// `%s %v %d %q %t %%` with width, `-` and, for `%f`, precision.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let left = chars.next_if_eq(&'-').is_some();
        let mut width = String::new();
        while let Some(digit) = chars.next_if(|c| c.is_ascii_digit() || *c == '.') {
            width.push(digit);
        }
        let (width, precision) = match width.split_once('.') {
            Some((width, precision)) => (width.parse().unwrap_or(0), precision.parse().ok()),
            None => (width.parse().unwrap_or(0usize), None),
        };
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        let text = match arguments.next() {
            Some(value) => verb_text(verb, value, precision),
            None => format!("%!{verb}(MISSING)"),
        };
        let padding = " ".repeat(width.min(MAX_WIDTH).saturating_sub(text.chars().count()));
        if left {
            out.push_str(&text);
            out.push_str(&padding);
        } else {
            out.push_str(&padding);
            out.push_str(&text);
        }
    }
    out
}

fn verb_text(verb: char, value: &Value, precision: Option<usize>) -> String {
    match (verb, value) {
        ('q', Value::String(text)) => format!("{text:?}"),
        ('f', Value::Number(number)) => {
            format!("{:.*}", precision.unwrap_or(6).min(64), number.as_f64().unwrap_or(0.0))
        }
        ('s' | 'v', _) | ('d', Value::Number(_)) | ('t', Value::Bool(_)) => match precision {
            Some(precision) => text_of(value).chars().take(precision).collect(),
            None => text_of(value),
        },
        _ => format!("%!{verb}({})", text_of(value)),
    }
}
