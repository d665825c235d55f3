//! TOML files as trees that remember where everything stands, and how they are merged.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::source::{Place, Source};
use super::text;

/// More than these are not reported for one file: the first ones explain the others.
const MOST_SYNTAX_ERRORS: usize = 5;

/// A value and the place where it stands.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Clone)]
pub(super) enum Value {
    Table(Table),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    Boolean(bool),
    /// What no key takes; the name of its type.
    Other(&'static str),
}

pub(super) type Table = BTreeMap<String, Entry>;

/// A key and its value.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: Place,
    pub(super) node: Node,
}

impl Value {
    /// The type with its article, for messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Table(_) => "a table",
            Value::Array(_) => "an array",
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Boolean(_) => "a boolean",
            Value::Other(name) => name,
        }
    }
}

impl Node {
    /// Shows every place of the tree.
    pub(super) fn each_place(&self, show: &mut impl FnMut(&Place)) {
        show(&self.place);
        match &self.value {
            Value::Table(table) => {
                for entry in table.values() {
                    entry.node.each_place(show);
                    show(&entry.key);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| item.each_place(show)),
            _ => {}
        }
    }
}

/// Reads one file.
///
/// # Errors
/// The first syntax errors.
pub(super) fn parse(source: &Rc<Source>) -> Result<Node, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        let shown = errors.iter().take(MOST_SYNTAX_ERRORS);
        return Err(shown.map(|error| syntax_problem(source, error)).collect());
    }
    let value = Value::Table(read_table(source, table.get_ref(), ""));
    Ok(Node { value, place: Place::file(source) })
}

fn syntax_problem(source: &Rc<Source>, error: &toml::de::Error) -> Problem {
    let message = text::printable(&text::hide_keys(error.message()));
    let span = error.span().unwrap_or(0..0);
    let problem = Place::new(source, span, "").problem(format!("not TOML: {message}"));
    match message.as_str() {
        message if message.contains("duplicate key") => problem.help("keep one of them"),
        _ => problem,
    }
}

fn read_table(source: &Rc<Source>, table: &DeTable<'_>, path: &str) -> Table {
    table
        .iter()
        .map(|(name, value)| {
            let shown = text::clip(&text::printable(&text::hide_keys(name.get_ref())));
            let path = if path.is_empty() { shown } else { format!("{path}.{shown}") };
            let key = Place::new(source, name.span(), path.as_str());
            let node = read_node(source, value.get_ref(), value.span(), path);
            (name.get_ref().to_string(), Entry { key, node })
        })
        .collect()
}

fn read_node(source: &Rc<Source>, value: &DeValue<'_>, span: Range<usize>, path: String) -> Node {
    let value = match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("one beyond 64 bits"), Value::Integer),
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => {
            let read = |(index, item): (usize, &toml::Spanned<DeValue<'_>>)| {
                read_node(source, item.get_ref(), item.span(), format!("{path}[{index}]"))
            };
            Value::Array(items.iter().enumerate().map(read).collect())
        }
        DeValue::Table(table) => Value::Table(read_table(source, table, &path)),
    };
    Node { value, place: Place::new(source, span, path) }
}

/// Lays a drop-in over what was read before: tables key by key, `[[server]]` appended, everything
/// else replaced.
pub(super) fn merge(base: &mut Node, over: Node) {
    merge_nodes(base, over, true);
}

fn merge_nodes(base: &mut Node, over: Node, root: bool) {
    match (&mut base.value, over.value) {
        (Value::Table(base), Value::Table(over)) => {
            for (name, entry) in over {
                merge_entry(base, name, entry, root);
            }
        }
        (_, value) => *base = Node { value, place: over.place },
    }
}

fn merge_entry(base: &mut Table, name: String, over: Entry, root: bool) {
    let Some(known) = base.get_mut(&name) else {
        base.insert(name, over);
        return;
    };
    match (&mut known.node.value, over.node) {
        (Value::Array(servers), Node { value: Value::Array(more), .. })
            if root && name == "server" =>
        {
            servers.extend(more);
        }
        (_, node) => {
            known.key = over.key;
            merge_nodes(&mut known.node, node, false);
        }
    }
}
