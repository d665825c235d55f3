//! Typed access to the keys of a table, with every problem noted.

use std::cell::{Cell, RefCell};

use super::error::{MOST_PROBLEMS, Problem};
use super::schema;
use super::source::{Place, Placed};
use super::text::{alternatives, nearest, quote};
use super::tree::{Entry, Node, Table, Value};
use super::value::Complaint;

/// Notes problems, so that reading can go on and report them all.
#[derive(Default)]
pub(super) struct Problems {
    noted: RefCell<Vec<Problem>>,
    /// How many there are besides.
    more: Cell<usize>,
}

impl Problems {
    pub(super) fn add(&self, problem: Problem) {
        let mut noted = self.noted.borrow_mut();
        match noted.len() < MOST_PROBLEMS {
            true => noted.push(problem),
            false => self.more.set(self.more.get() + 1),
        }
    }

    pub(super) fn extend(&self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.add(problem));
    }

    /// What was noted, and how many there are besides.
    pub(super) fn into_parts(self) -> (Vec<Problem>, usize) {
        (self.noted.into_inner(), self.more.get())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.noted.borrow().is_empty()
    }

    /// The value, or nothing and a note.
    pub(super) fn note<T>(&self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.add(problem)).ok()
    }
}

/// A table whose keys are known.
pub(super) struct Fields<'a> {
    table: Option<&'a Table>,
    problems: &'a Problems,
}

impl<'a> Fields<'a> {
    /// Notes everything in the table that is not in `known`.
    pub(super) fn new(node: &'a Node, known: &[&str], problems: &'a Problems) -> Self {
        let Value::Table(table) = &node.value else {
            problems.add(type_problem(node, "a table"));
            return Fields { table: None, problems };
        };
        for (name, entry) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            problems.add(unknown_key(name, entry, known));
        }
        Fields { table: Some(table), problems }
    }

    /// The table under a key; an empty one if there is none.
    pub(super) fn table(&self, name: &str, known: &[&str]) -> Fields<'a> {
        match self.entry(name) {
            Some(entry) => Fields::new(&entry.node, known, self.problems),
            None => Fields { table: None, problems: self.problems },
        }
    }

    pub(super) fn is_table(&self) -> bool {
        self.table.is_some()
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.table?.get(name)
    }

    pub(super) fn key_place(&self, name: &str) -> Option<&'a Place> {
        self.entry(name).map(|entry| &entry.key)
    }

    pub(super) fn boolean(&self, name: &str, default: bool) -> bool {
        let Some(entry) = self.entry(name) else { return default };
        let Value::Boolean(value) = entry.node.value else {
            self.problems.add(type_problem(&entry.node, "true or false"));
            return default;
        };
        value
    }

    /// An integer inside a range.
    pub(super) fn integer<T: TryFrom<i64>>(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<Placed<T>> {
        let node = &self.entry(name)?.node;
        let Value::Integer(number) = node.value else {
            self.problems.add(type_problem(node, "an integer"));
            return None;
        };
        let value = T::try_from(number).ok().filter(|_| range.contains(&number));
        if value.is_none() {
            let (low, high) = range.into_inner();
            let message = format!("{number} is not in the range {low} to {high}");
            self.problems.add(node.place.problem(message));
        }
        Some(Placed { value: value?, place: node.place.clone() })
    }

    /// A string that means something.
    pub(super) fn parsed<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Placed<T>> {
        parse_node(&self.entry(name)?.node, &parse, self.problems)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Option<Placed<T>> {
        self.parsed(name, |word| choose(word, choices))
    }

    /// An array of strings that mean something. Items that do not are noted and left out.
    pub(super) fn list<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Placed<Vec<Placed<T>>>> {
        let items = self.array(name)?;
        let place = self.entry(name)?.node.place.clone();
        let value =
            items.iter().filter_map(|item| parse_node(item, &parse, self.problems)).collect();
        Some(Placed { value, place })
    }

    /// The items of an array; none if there is no array.
    pub(super) fn items(&self, name: &str) -> &'a [Node] {
        self.array(name).unwrap_or_default()
    }

    fn array(&self, name: &str) -> Option<&'a [Node]> {
        let entry = self.entry(name)?;
        let Value::Array(items) = &entry.node.value else {
            let example = match name {
                "server" => "write [[server]] with two brackets".into(),
                _ => format!("write {name} = [...]"),
            };
            self.problems.add(type_problem(&entry.node, "an array").help(example));
            return None;
        };
        Some(items)
    }
}

fn parse_node<T>(
    node: &Node,
    parse: &impl Fn(&str) -> Result<T, Complaint>,
    problems: &Problems,
) -> Option<Placed<T>> {
    let Value::String(string) = &node.value else {
        problems.add(type_problem(node, "a string"));
        return None;
    };
    let value = problems.note(parse(string).map_err(|complaint| complaint.at(&node.place)))?;
    Some(Placed { value, place: node.place.clone() })
}

fn type_problem(node: &Node, expected: &str) -> Problem {
    node.place.problem(format!("{expected} is expected here, not {}", node.value.type_name()))
}

/// One of a few words.
pub(super) fn choose<T: Copy>(word: &str, choices: &[(&str, T)]) -> Result<T, Complaint> {
    let known = choices.iter().find(|(known, _)| *known == word);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        unknown_word(word, &words)
    })
}

fn unknown_word(word: &str, known: &[&str]) -> Complaint {
    let guess = nearest(word, known).map(|near| format!("; did you mean \"{near}\"?"));
    Complaint::new(format!("unknown value {}{}", quote(word), guess.unwrap_or_default()))
        .help(format!("write {}", alternatives(known)))
}

fn unknown_key(name: &str, entry: &Entry, known: &[&str]) -> Problem {
    let what = if matches!(entry.node.value, Value::Table(_)) { "table" } else { "key" };
    let elsewhere = schema::TABLES.iter().find(|(_, keys)| keys.contains(&name));
    let near = nearest(name, known);
    let begins = near.is_some_and(|near| name.starts_with(near));
    let problem = match (near, elsewhere) {
        (_, Some((table, _))) if !begins => {
            entry.key.problem(format!("unknown {what} here; it belongs into {table}"))
        }
        (Some(near), _) => entry.key.problem(format!("unknown {what}; did you mean \"{near}\"?")),
        _ => entry
            .key
            .problem(format!("unknown {what}"))
            .help(format!("known here: {}", known.join(", "))),
    };
    if schema::may_name_a_secret(name) {
        return problem.help(
            "keys are not written into this file: put the key into a file of its own, mode 0600,\n\
             and name that file in private_key_file or preshared_key_file",
        );
    }
    problem
}
