//! The answer to a command: rows of text.

use std::str::FromStr;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{
    DataRowBody, ErrorFields, ErrorResponseBody, NoticeResponseBody, RowDescriptionBody,
};

use crate::ServerMessage;

/// All rows of an answer together are not larger. A timeline's history is a few lines.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The rows of a command's answer.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    names: Vec<String>,
    rows: Vec<Vec<Option<Bytes>>>,
    bytes: usize,
}

impl Rows {
    /// Takes the columns' names. An answer has one such message.
    pub(crate) fn describe(&mut self, description: &RowDescriptionBody) -> Result<(), String> {
        if !self.names.is_empty() {
            return Err("it answers with two tables".to_owned());
        }
        self.names = description
            .fields()
            .map(|field| Ok(field.name().to_owned()))
            .collect()
            .map_err(|error| format!("the columns of an answer: {error}"))?;
        Ok(())
    }

    /// Takes a row.
    pub(crate) fn add(&mut self, row: &DataRowBody) -> Result<(), String> {
        let buffer = row.buffer_bytes();
        // Beside the bytes, so that empty rows count too.
        self.bytes = self.bytes.saturating_add(buffer.len()).saturating_add(64);
        if self.bytes > ANSWER_BYTES_MAX {
            return Err("an answer is too large".to_owned());
        }
        let row = row
            .ranges()
            .map(|range| Ok(range.map(|range| buffer.slice(range))))
            .collect()
            .map_err(|error| format!("a row of an answer: {error}"))?;
        self.rows.push(row);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each row by itself.
    pub(crate) fn each(self) -> impl Iterator<Item = Self> {
        let names = self.names;
        self.rows.into_iter().map(move |row| Self {
            names: names.clone(),
            rows: vec![row],
            bytes: 0,
        })
    }

    fn only(&self) -> Result<&[Option<Bytes>], String> {
        match self.rows.as_slice() {
            [row] => Ok(row),
            rows => Err(format!("it answers with {} rows, not one", rows.len())),
        }
    }

    /// The first column of the only row as text.
    pub(crate) fn first(&self) -> Result<String, String> {
        match self.only()? {
            [Some(bytes), ..] => {
                String::from_utf8(bytes.to_vec()).map_err(|_| "its answer is not UTF-8".to_owned())
            }
            _ => Err("its answer is empty".to_owned()),
        }
    }

    /// A column of the only row, as it is.
    pub(crate) fn bytes(&self, column: &str) -> Result<Bytes, String> {
        let row = self.only()?;
        let place = self.names.iter().position(|name| name == column);
        place
            .and_then(|place| row.get(place)?.clone())
            .ok_or_else(|| format!("its answer has no `{column}`"))
    }

    /// A column of the only row as text.
    pub(crate) fn text(&self, column: &str) -> Result<String, String> {
        String::from_utf8(self.bytes(column)?.to_vec())
            .map_err(|_| format!("its `{column}` is not UTF-8"))
    }

    /// A column of the only row, read as what it is; `None` where it is null.
    pub(crate) fn optional<T: FromStr>(&self, column: &str) -> Result<Option<T>, String> {
        let row = self.only()?;
        let place = self.names.iter().position(|name| name == column);
        match place.and_then(|place| row.get(place)) {
            Some(None) => Ok(None),
            _ => self.value(column).map(Some),
        }
    }

    /// A column of the only row, read as what it is.
    pub(crate) fn value<T: FromStr>(&self, column: &str) -> Result<T, String> {
        let text = self.text(column)?;
        text.parse()
            .map_err(|_| format!("its `{column}` is `{text}`"))
    }
}

/// Reads an error of the server. What is missing in it stays empty.
pub(crate) fn server_message(body: &ErrorResponseBody) -> Result<ServerMessage, String> {
    message_of(body.fields())
}

/// Reads a notice of the server, as [`server_message`].
pub(crate) fn notice_message(body: &NoticeResponseBody) -> Result<ServerMessage, String> {
    message_of(body.fields())
}

fn message_of(mut fields: ErrorFields<'_>) -> Result<ServerMessage, String> {
    let mut message = ServerMessage::default();
    loop {
        let field = fields.next();
        let Some(field) = field.map_err(|error| format!("an error that is cut off: {error}"))?
        else {
            return Ok(message);
        };
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            // Not translated, unlike S, which stands before it.
            b'V' => message.severity = text,
            b'C' => message.code = text,
            b'M' => message.message = text,
            b'D' => message.detail = Some(text),
            b'H' => message.hint = Some(text),
            _ => {}
        }
    }
}
