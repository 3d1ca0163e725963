//! From text to pieces: literal text, and the tokens of each `{{action}}`.

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Printed as it is.
    Text(String),
    /// The tokens between `{{` and `}}`.
    Action(Vec<Token>),
}

/// A token of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `.`: the current value.
    Dot,
    /// `.Name`, one step each. `glued` is false where a space comes before it, so that `f .A .B` has two arguments.
    Field {
        name: String,
        glued: bool,
    },
    /// `$name`; empty for `$` alone.
    Variable(String),
    /// A function or keyword.
    Word(String),
    /// A string or character literal, unescaped.
    Text(String),
    /// An integer literal.
    Integer(i64),
    /// A literal with a fraction.
    Float(f64),
    Pipe,
    Open,
    Close,
    /// `:=`
    Declare,
    /// `=`
    Assign,
    Comma,
}

/// Splits a template into pieces; `{{-` and `-}}` eat the white space next to them.
pub(super) fn lex(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_start = false;
    loop {
        let (literal, action) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let trim_end = action.is_some_and(trims_before);
        let mut literal = literal;
        if trim_start {
            literal = literal.trim_start();
        }
        if trim_end {
            literal = literal.trim_end();
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.to_owned()));
        }
        let Some(action) = action else {
            return Ok(pieces);
        };
        let action = if trim_end { &action[1..] } else { action };
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let (after, trims) = end_of_comment(comment)?;
            (rest, trim_start) = (after, trims);
            continue;
        }
        let mut lexer = Lexer { rest: action };
        let (tokens, trims) = lexer.action()?;
        pieces.push(Piece::Action(tokens));
        (rest, trim_start) = (lexer.rest, trims);
    }
}

/// `{{- ` with the white space that tells it from a negative number.
fn trims_before(action: &str) -> bool {
    let mut chars = action.chars();
    chars.next() == Some('-') && chars.next().is_some_and(char::is_whitespace)
}

fn end_of_comment(comment: &str) -> Result<(&str, bool), TemplateError> {
    let after = comment
        .find("*/")
        .map(|at| comment[at + 2..].trim_start())
        .ok_or_else(|| TemplateError::new("comment has no end"))?;
    if let Some(rest) = after.strip_prefix("}}") {
        return Ok((rest, false));
    }
    after
        .strip_prefix("-}}")
        .map(|rest| (rest, true))
        .ok_or_else(|| TemplateError::new("a comment must fill its action"))
}

struct Lexer<'a> {
    rest: &'a str,
}

impl Lexer<'_> {
    /// Reads up to and with `}}`; tells whether `-}}` ended it.
    fn action(&mut self) -> Result<(Vec<Token>, bool), TemplateError> {
        let mut tokens = Vec::new();
        loop {
            let before = self.rest;
            self.rest = self.rest.trim_start();
            let glued = before.len() == self.rest.len() && !tokens.is_empty();
            if let Some(rest) = self.rest.strip_prefix("}}") {
                self.rest = rest;
                return Ok((tokens, false));
            }
            if !glued && let Some(rest) = self.rest.strip_prefix("-}}") {
                self.rest = rest;
                return Ok((tokens, true));
            }
            let token = self.token(glued)?;
            tokens.push(token);
        }
    }

    fn token(&mut self, glued: bool) -> Result<Token, TemplateError> {
        let Some(first) = self.rest.chars().next() else {
            return Err(TemplateError::new("action has no }}"));
        };
        if let Some(token) = self.punctuation(first) {
            return Ok(token);
        }
        match first {
            '.' => {
                self.rest = &self.rest[1..];
                let name = self.word();
                Ok(if name.is_empty() { Token::Dot } else { Token::Field { name, glued } })
            }
            '$' => {
                self.rest = &self.rest[1..];
                Ok(Token::Variable(self.word()))
            }
            '"' => self.quoted(),
            '`' => self.raw(),
            '0'..='9' | '-' | '+' => self.number(),
            _ if first.is_alphabetic() || first == '_' => Ok(Token::Word(self.word())),
            _ => Err(TemplateError::new(format!("unexpected {first:?} in action"))),
        }
    }

    fn punctuation(&mut self, first: char) -> Option<Token> {
        let (token, length) = match first {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            ':' if self.rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Assign, 1),
            _ => return None,
        };
        self.rest = &self.rest[length..];
        Some(token)
    }

    fn word(&mut self) -> String {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn number(&mut self) -> Result<Token, TemplateError> {
        let end = self
            .rest
            .char_indices()
            .find(|&(at, c)| !(c.is_ascii_digit() || c == '.' || (at == 0 && (c == '-' || c == '+'))))
            .map_or(self.rest.len(), |(at, _)| at);
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if let Ok(integer) = text.parse() {
            return Ok(Token::Integer(integer));
        }
        text.parse().map(Token::Float).map_err(|_| TemplateError::new(format!("bad number {text:?}")))
    }

    fn raw(&mut self) -> Result<Token, TemplateError> {
        let body = &self.rest[1..];
        let end = body.find('`').ok_or_else(|| TemplateError::new("string has no end"))?;
        self.rest = &body[end + 1..];
        Ok(Token::Text(body[..end].to_owned()))
    }

    fn quoted(&mut self) -> Result<Token, TemplateError> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Token::Text(text));
                }
                '\\' => match chars.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(same @ ('"' | '\\' | '\'')) => text.push(same),
                    other => {
                        return Err(TemplateError::new(format!(
                            "unknown escape \\{}",
                            other.map(String::from).unwrap_or_default()
                        )));
                    }
                },
                _ => text.push(c),
            }
        }
        Err(TemplateError::new("string has no end"))
    }
}
