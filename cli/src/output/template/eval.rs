//! Filling in: walks the tree with the data.

use std::borrow::Cow;

use serde_json::Value;

use super::parse::{Base, Command, Node, Operand, Pipeline};
use super::{TemplateError, fields};

/// Output is given up beyond this: nested ranges over long lists multiply.
const MAX_OUTPUT_BYTES: usize = 256 * 1024 * 1024;

pub(super) fn render(nodes: &[Node], data: &Value) -> Result<String, TemplateError> {
    let mut scope = Scope { variables: vec![(String::new(), data.clone())], out: String::new() };
    scope.nodes(nodes, data)?;
    Ok(scope.out)
}

struct Scope {
    variables: Vec<(String, Value)>,
    out: String,
}

impl Scope {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        for node in nodes {
            self.node(node, dot)?;
        }
        Ok(())
    }

    /// A block's variables end with it.
    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        let depth = self.variables.len();
        let result = self.nodes(nodes, dot);
        self.variables.truncate(depth);
        result
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), TemplateError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Emit(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&text_of(&value));
            }
            Node::Set { name, declare, value } => {
                let value = self.pipeline(value, dot)?;
                self.set(name, *declare, value)?;
            }
            Node::If { branches, otherwise } => return self.branches(branches, otherwise, dot),
            Node::Range { names, list, body, otherwise } => return self.range(names, list, body, otherwise, dot),
            Node::With { name, value, body, otherwise } => {
                let value = self.pipeline(value, dot)?;
                if !truth(&value) {
                    return self.block(otherwise, dot);
                }
                let depth = self.variables.len();
                if let Some(name) = name {
                    self.variables.push((name.clone(), value.clone()));
                }
                let result = self.nodes(body, &value);
                self.variables.truncate(depth);
                return result;
            }
        }
        if self.out.len() > MAX_OUTPUT_BYTES {
            return Err(TemplateError::new("the result is too large"));
        }
        Ok(())
    }

    fn set(&mut self, name: &str, declare: bool, value: Value) -> Result<(), TemplateError> {
        if declare {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        match known {
            Some((_, slot)) => {
                *slot = value;
                Ok(())
            }
            None => Err(undefined(name)),
        }
    }

    fn branches(
        &mut self,
        branches: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        for (condition, body) in branches {
            if truth(&self.pipeline(condition, dot)?) {
                return self.block(body, dot);
            }
        }
        self.block(otherwise, dot)
    }

    fn range(
        &mut self,
        names: &[String],
        list: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let items: Vec<(Value, Value)> = match self.pipeline(list, dot)? {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(index, item)| (Value::from(index), item)).collect()
            }
            Value::Object(map) => map.into_iter().map(|(key, item)| (Value::String(key), item)).collect(),
            Value::Null => Vec::new(),
            other => {
                return Err(TemplateError::new(format!("range can't iterate over {}", text_of(&other))));
            }
        };
        if items.is_empty() {
            return self.block(otherwise, dot);
        }
        for (key, item) in items {
            let depth = self.variables.len();
            match names {
                [] => {}
                [value] => self.variables.push((value.clone(), item.clone())),
                [index, value, ..] => {
                    self.variables.push((index.clone(), key));
                    self.variables.push((value.clone(), item.clone()));
                }
            }
            let result = self.nodes(body, &item);
            self.variables.truncate(depth);
            result?;
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in &pipeline.commands {
            let value = match command {
                Command::Value(operand) => self.operand(operand, dot)?,
                Command::Call(function, arguments) => {
                    let mut values =
                        arguments.iter().map(|argument| self.operand(argument, dot)).collect::<Result<Vec<_>, _>>()?;
                    values.extend(last.take());
                    function.call(&values)?
                }
            };
            last = Some(value);
        }
        last.ok_or_else(|| TemplateError::new("empty pipeline"))
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        let base: Cow<'_, Value> = match &operand.base {
            Base::Dot => Cow::Borrowed(dot),
            Base::Literal(value) => Cow::Borrowed(value),
            Base::Variable(name) => Cow::Borrowed(self.variable(name)?),
            Base::Group(pipeline) => Cow::Owned(self.pipeline(pipeline, dot)?),
            Base::Call(function) => Cow::Owned(function.call(&[])?),
        };
        let mut value = base.as_ref();
        for (index, name) in operand.fields.iter().enumerate() {
            match fields::get(value, &operand.fields[..index], name, &operand.fields[index + 1..])? {
                Some(inner) => value = inner,
                None => return Ok(Value::Null),
            }
        }
        Ok(value.clone())
    }

    fn variable(&self, name: &str) -> Result<&Value, TemplateError> {
        self.variables
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
            .ok_or_else(|| undefined(name))
    }
}

fn undefined(name: &str) -> TemplateError {
    TemplateError::new(format!("undefined variable \"${name}\""))
}

/// Go's truth: everything but false, 0, nil and the empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// How Go's `fmt` prints a value.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(text_of).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let items: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", text_of(value))).collect();
            format!("map[{}]", items.join(" "))
        }
    }
}
