//! From tokens to a tree. Finds every syntax error and unknown function before anything is printed.

use std::iter::Peekable;
use std::vec::IntoIter;

use serde_json::Value;

use super::functions::Function;
use super::lex::{Piece, Token};
use super::{MAX_DEPTH, TemplateError};

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Printed as it is.
    Text(String),
    /// `{{pipeline}}`
    Emit(Pipeline),
    /// `{{$name := pipeline}}` or, where it exists already, `=`.
    Set { name: String, declare: bool, value: Pipeline },
    /// `{{if}}…{{else if}}…{{else}}…{{end}}`
    If { branches: Vec<(Pipeline, Vec<Node>)>, otherwise: Vec<Node> },
    /// `{{range $key, $value := list}}…{{else}}…{{end}}`
    Range { names: Vec<String>, list: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    /// `{{with value}}…{{else}}…{{end}}`
    With { name: Option<String>, value: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
}

/// `a | b | c`: each result is the last argument of the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    pub(super) commands: Vec<Command>,
}

/// A value, or a function and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Value(Operand),
    Call(Function, Vec<Operand>),
}

/// A value's origin, then the fields taken from it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Literal(Value),
    Group(Box<Pipeline>),
    /// A function without arguments in the place of an argument.
    Call(Function),
}

/// What ended a list of nodes.
#[derive(Debug, Clone, PartialEq)]
enum Stop {
    Text,
    Block,
    Else,
    ElseIf(Vec<Token>),
}

pub(super) fn parse(pieces: Vec<Piece>) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { pieces: pieces.into_iter() };
    match parser.nodes(0)? {
        (nodes, Stop::Text) => Ok(nodes),
        (_, Stop::Block) => Err(TemplateError::new("unexpected {{end}}")),
        (_, Stop::Else | Stop::ElseIf(_)) => Err(TemplateError::new("unexpected {{else}}")),
    }
}

struct Parser {
    pieces: IntoIter<Piece>,
}

impl Parser {
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node>, Stop), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::new("blocks are nested too deeply"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let mut tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let keyword = match tokens.first() {
                Some(Token::Word(word)) => word.clone(),
                _ => String::new(),
            };
            match keyword.as_str() {
                "end" => {
                    nothing_after(&tokens, "end")?;
                    return Ok((nodes, Stop::Block));
                }
                "else" => {
                    if matches!(tokens.get(1), Some(Token::Word(word)) if word == "if") {
                        return Ok((nodes, Stop::ElseIf(tokens.split_off(2))));
                    }
                    nothing_after(&tokens, "else")?;
                    return Ok((nodes, Stop::Else));
                }
                "if" => nodes.push(self.if_block(tokens.split_off(1), depth)?),
                "range" => nodes.push(self.range_block(tokens.split_off(1), depth)?),
                "with" => nodes.push(self.with_block(tokens.split_off(1), depth)?),
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(TemplateError::new(format!("{{{{{keyword}}}}} is not supported yet")));
                }
                _ => nodes.push(action(tokens)?),
            }
        }
        Ok((nodes, Stop::Text))
    }

    fn if_block(&mut self, condition: Vec<Token>, depth: usize) -> Result<Node, TemplateError> {
        let mut condition = pipeline(condition)?;
        let mut branches = Vec::new();
        loop {
            let (body, end) = self.nodes(depth + 1)?;
            branches.push((condition, body));
            let otherwise = match end {
                Stop::Text => return Err(no_end("if")),
                Stop::ElseIf(tokens) => {
                    condition = pipeline(tokens)?;
                    continue;
                }
                Stop::Block => Vec::new(),
                Stop::Else => self.last_branch("if", depth)?,
            };
            return Ok(Node::If { branches, otherwise });
        }
    }

    fn range_block(&mut self, tokens: Vec<Token>, depth: usize) -> Result<Node, TemplateError> {
        let (names, list) = declared(tokens)?;
        if names.len() > 2 {
            return Err(TemplateError::new("range takes at most two variables"));
        }
        let (body, otherwise) = self.body("range", depth)?;
        Ok(Node::Range { names, list, body, otherwise })
    }

    fn with_block(&mut self, tokens: Vec<Token>, depth: usize) -> Result<Node, TemplateError> {
        let (mut names, value) = declared(tokens)?;
        if names.len() > 1 {
            return Err(TemplateError::new("with takes at most one variable"));
        }
        let (body, otherwise) = self.body("with", depth)?;
        Ok(Node::With { name: names.pop(), value, body, otherwise })
    }

    fn body(&mut self, what: &str, depth: usize) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
        let (body, end) = self.nodes(depth + 1)?;
        match end {
            Stop::Text => Err(no_end(what)),
            Stop::ElseIf(_) => Err(TemplateError::new(format!("else if within {what}"))),
            Stop::Block => Ok((body, Vec::new())),
            Stop::Else => Ok((body, self.last_branch(what, depth)?)),
        }
    }

    fn last_branch(&mut self, what: &str, depth: usize) -> Result<Vec<Node>, TemplateError> {
        match self.nodes(depth + 1)? {
            (nodes, Stop::Block) => Ok(nodes),
            (_, Stop::Text) => Err(no_end(what)),
            (_, Stop::Else | Stop::ElseIf(_)) => Err(TemplateError::new("a second {{else}}")),
        }
    }
}

fn no_end(what: &str) -> TemplateError {
    TemplateError::new(format!("{{{{{what}}}}} has no {{{{end}}}}"))
}

fn nothing_after(tokens: &[Token], what: &str) -> Result<(), TemplateError> {
    if tokens.len() == 1 { Ok(()) } else { Err(TemplateError::new(format!("unexpected text after {what}"))) }
}

/// A print or an assignment.
fn action(tokens: Vec<Token>) -> Result<Node, TemplateError> {
    match (tokens.first(), tokens.get(1)) {
        (Some(Token::Variable(name)), Some(operator @ (Token::Declare | Token::Assign))) => {
            let (name, declare) = (name.clone(), *operator == Token::Declare);
            let value = pipeline(tokens.into_iter().skip(2).collect())?;
            Ok(Node::Set { name, declare, value })
        }
        _ => pipeline(tokens).map(Node::Emit),
    }
}

/// `$a, $b := pipeline`, or a pipeline alone.
fn declared(tokens: Vec<Token>) -> Result<(Vec<String>, Pipeline), TemplateError> {
    let Some(at) = tokens.iter().position(|token| *token == Token::Declare) else {
        return Ok((Vec::new(), pipeline(tokens)?));
    };
    let mut names = Vec::new();
    for (index, token) in tokens[..at].iter().enumerate() {
        match token {
            Token::Variable(name) if index % 2 == 0 => names.push(name.clone()),
            Token::Comma if index % 2 == 1 => {}
            _ => return Err(TemplateError::new("only variables may come before :=")),
        }
    }
    Ok((names, pipeline(tokens.into_iter().skip(at + 1).collect())?))
}

type Tokens = Peekable<IntoIter<Token>>;

fn pipeline(tokens: Vec<Token>) -> Result<Pipeline, TemplateError> {
    let mut tokens = tokens.into_iter().peekable();
    let pipeline = commands(&mut tokens, 0)?;
    match tokens.next() {
        None => Ok(pipeline),
        Some(token) => Err(unexpected(&token)),
    }
}

fn commands(tokens: &mut Tokens, depth: usize) -> Result<Pipeline, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::new("parentheses are nested too deeply"));
    }
    let mut commands = vec![command(tokens, depth)?];
    while tokens.next_if_eq(&Token::Pipe).is_some() {
        let next = command(tokens, depth)?;
        if matches!(next, Command::Value(_)) {
            return Err(TemplateError::new("only a function may follow |"));
        }
        commands.push(next);
    }
    Ok(Pipeline { commands })
}

fn command(tokens: &mut Tokens, depth: usize) -> Result<Command, TemplateError> {
    if let Some(Token::Word(word)) = tokens.peek()
        && literal(word).is_none()
    {
        let function = function(word)?;
        tokens.next();
        let mut arguments = Vec::new();
        while let Some(operand) = operand(tokens, depth)? {
            arguments.push(operand);
        }
        return Ok(Command::Call(function, arguments));
    }
    match operand(tokens, depth)? {
        Some(value) => Ok(Command::Value(value)),
        None => Err(TemplateError::new("a value is missing")),
    }
}

/// One argument; `None` where the command ends.
fn operand(tokens: &mut Tokens, depth: usize) -> Result<Option<Operand>, TemplateError> {
    let mut fields = Vec::new();
    let base = match tokens.peek() {
        None | Some(Token::Pipe | Token::Close) => return Ok(None),
        Some(_) => match tokens.next().expect("peeked") {
            Token::Dot => Base::Dot,
            Token::Field { name, .. } => {
                fields.push(name);
                Base::Dot
            }
            Token::Variable(name) => Base::Variable(name),
            Token::Text(text) => Base::Literal(Value::String(text)),
            Token::Integer(number) => Base::Literal(number.into()),
            Token::Float(number) => Base::Literal(number.into()),
            Token::Word(word) => match literal(&word) {
                Some(value) => Base::Literal(value),
                None => Base::Call(function(&word)?),
            },
            Token::Open => {
                let group = commands(tokens, depth + 1)?;
                if tokens.next() != Some(Token::Close) {
                    return Err(TemplateError::new("a ) is missing"));
                }
                Base::Group(Box::new(group))
            }
            token => return Err(unexpected(&token)),
        },
    };
    while let Some(Token::Field { name, .. }) =
        tokens.next_if(|token| matches!(token, Token::Field { glued: true, .. }))
    {
        fields.push(name);
    }
    Ok(Some(Operand { base, fields }))
}

fn function(word: &str) -> Result<Function, TemplateError> {
    Function::named(word).ok_or_else(|| TemplateError::new(format!("function {word:?} is not defined")))
}

fn literal(word: &str) -> Option<Value> {
    match word {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        "nil" => Some(Value::Null),
        _ => None,
    }
}

fn unexpected(token: &Token) -> TemplateError {
    let text = match token {
        Token::Dot => ".".to_owned(),
        Token::Field { name, .. } => format!(".{name}"),
        Token::Variable(name) => format!("${name}"),
        Token::Word(word) => word.clone(),
        Token::Text(text) => format!("{text:?}"),
        Token::Integer(number) => number.to_string(),
        Token::Float(number) => number.to_string(),
        Token::Pipe => "|".to_owned(),
        Token::Open => "(".to_owned(),
        Token::Close => ")".to_owned(),
        Token::Declare => ":=".to_owned(),
        Token::Assign => "=".to_owned(),
        Token::Comma => ",".to_owned(),
    };
    TemplateError::new(format!("unexpected {text} in action"))
}
