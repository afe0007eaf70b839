//! The JSON Schema of the file (draft 2020-12), for editors and other programs.
//!
//! It refuses less than `balancer check`: units and ranges of durations, names that must exist, and
//! rules between sections are the check's. It never refuses a file that the check takes.

use serde_json::{Map, Value, json};

use super::{
    KeyDefault, KeyRow, ValueSpec, section,
    spec::{ValueKind, ValueShape},
};

/// Keys of a section of which exactly one must be given.
const EXACTLY_ONE: &[(&str, &[&str])] = &[
    ("routes[]", &["pool", "split", "redirect", "respond"]),
    ("pools.NAME.health_check.body", &["regex"]),
    (
        "pools.NAME.health_check.expect_headers.NAME",
        &["regex", "present"],
    ),
    (
        "pools.NAME.health_check.steps[].send",
        &["hex", "secret_file"],
    ),
    ("pools.NAME.health_check.steps[].expect", &["hex", "regex"]),
    ("pools.NAME.backends[]", &["address", "srv"]),
    ("pools.NAME.discover", &["file", "etcd"]),
];

/// Keys of a section of which one at least must be given.
const AT_LEAST_ONE: &[(&str, &[&str])] = &[
    ("listeners.NAME.tls", &["cert", "certificates"]),
    ("pools.NAME.health_check.steps[]", &["send", "expect"]),
    ("pools.NAME", &["backends", "discover"]),
];

/// Keys of a section that exclude each other.
const AT_MOST_ONE: &[(&str, &[&str])] = &[
    ("routes[]", &["path", "path_exact", "path_regex"]),
    ("routes[].rewrite", &["path", "strip_prefix"]),
    ("listeners.NAME.tls", &["cert", "certificates"]),
    ("pools.NAME.backends[]", &["srv", "weight"]),
];

/// Keys of a section that go together.
const REQUIRED_TOGETHER: &[(&str, &str, &str)] = &[
    ("listeners.NAME.tls", "cert", "key"),
    ("listeners.NAME.tls", "client_auth", "client_ca"),
    ("listeners.NAME.tls", "client_subject", "client_ca"),
    ("pools.NAME.tls", "client_cert", "client_key"),
    ("pools.NAME.tls", "client_key", "client_cert"),
    ("pools.NAME.backends[].tls", "client_cert", "client_key"),
    ("pools.NAME.backends[].tls", "client_key", "client_cert"),
    ("pools.NAME.health_check.tls", "client_cert", "client_key"),
    ("pools.NAME.health_check.tls", "client_key", "client_cert"),
    ("pools.NAME.discover.etcd", "user", "password"),
    ("pools.NAME.discover.etcd", "password", "user"),
    ("pools.NAME.discover.etcd.tls", "client_cert", "client_key"),
    ("pools.NAME.discover.etcd.tls", "client_key", "client_cert"),
    ("trusted_proxies", "client_header", "from"),
];

/// The whole schema.
pub fn document() -> Value {
    let mut document = object("");
    let fields = [
        ("$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("title", "balancer.yaml"),
        ("description", "The configuration of balancer."),
    ];
    for (name, text) in fields {
        document.insert(name.to_owned(), text.into());
    }
    Value::Object(document)
}

/// A section: its keys, and no others.
fn object(path: &str) -> Map<String, Value> {
    let rows = section(path);
    let properties: Map<String, Value> = rows
        .iter()
        .map(|row| (row.name().to_owned(), property(row)))
        .collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), properties.into());
    schema.insert("additionalProperties".to_owned(), false.into());
    let required: Vec<&str> = rows
        .iter()
        .filter(|row| row.default == KeyDefault::Required)
        .map(|row| row.name())
        .collect();
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    let rules = rules(path);
    if !rules.is_empty() {
        schema.insert("allOf".to_owned(), rules.into());
    }
    schema
}

/// Rules over several keys of a section.
fn rules(path: &str) -> Vec<Value> {
    let given = |keys: &[&str]| -> Vec<Value> {
        keys.iter().map(|key| json!({"required": [key]})).collect()
    };
    let mut rules = Vec::new();
    for (section, keys) in EXACTLY_ONE {
        if *section == path {
            rules.push(json!({"oneOf": given(keys)}));
        }
    }
    for (section, keys) in AT_LEAST_ONE {
        if *section == path {
            rules.push(json!({"anyOf": given(keys)}));
        }
    }
    for (section, keys) in AT_MOST_ONE {
        if *section == path {
            let mut choices = given(keys);
            choices.push(json!({"not": {"anyOf": given(keys)}}));
            rules.push(json!({"oneOf": choices}));
        }
    }
    let together: Map<String, Value> = REQUIRED_TOGETHER
        .iter()
        .filter(|(section, ..)| *section == path)
        .map(|(_, key, other)| ((*key).to_owned(), json!([other])))
        .collect();
    if !together.is_empty() {
        rules.push(json!({"dependentRequired": together}));
    }
    rules
}

/// The schema of a key, with its meaning and default.
fn property(row: &KeyRow) -> Value {
    let mut choices = shaped(row);
    if let Some(word) = row.value.or_word {
        choices.push(json!({"const": word}));
    }
    let mut schema = match <[Value; 1]>::try_from(choices) {
        Ok([Value::Object(only)]) => only,
        Ok([other]) => Map::from_iter([("const".to_owned(), other)]),
        Err(choices) => Map::from_iter([("anyOf".to_owned(), choices.into())]),
    };
    if !row.doc.is_empty() {
        schema.insert("description".to_owned(), row.doc.into());
    }
    if let KeyDefault::Value(text) = row.default {
        schema.insert("default".to_owned(), default(&row.value, text));
    }
    Value::Object(schema)
}

/// The default as JSON: numbers and booleans as such, the words of a list one by one.
fn default(spec: &ValueSpec, text: &str) -> Value {
    let list = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Some(entries) = list {
        let entries = entries.split(", ").filter(|entry| !entry.is_empty());
        return entries.collect();
    }
    match (text, spec.kind) {
        ("{}", _) => json!({}),
        (_, ValueKind::Integer { .. } | ValueKind::Boolean) => {
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        _ => text.into(),
    }
}

/// One value, a list or a map of them, keys: each a choice.
fn shaped(row: &KeyRow) -> Vec<Value> {
    let spec = &row.value;
    let entry = |suffix: &str| {
        let own_keys = format!("{}{suffix}", row.path);
        match (spec.kind, spec.or_keys) {
            (ValueKind::Keys, _) => vec![Value::Object(object(&own_keys))],
            (_, true) => vec![single(spec), Value::Object(object(&own_keys))],
            _ => vec![single(spec)],
        }
    };
    let list = |entries: Vec<Value>, min: usize| match min {
        0 => json!({"type": "array", "items": any_of(entries)}),
        _ => json!({"type": "array", "items": any_of(entries), "minItems": min}),
    };
    match spec.shape {
        ValueShape::Single => entry(""),
        ValueShape::List { min } => vec![list(entry("[]"), min)],
        ValueShape::OneOrList { min } => {
            let mut choices = entry("");
            choices.push(list(vec![single(spec)], min));
            choices
        }
        ValueShape::Map { .. } => {
            let values = any_of(entry(".NAME"));
            let schema = match (spec.kind, spec.pattern) {
                (ValueKind::Keys, Some(pattern)) => json!({
                    "type": "object",
                    "additionalProperties": values,
                    "propertyNames": {"pattern": pattern},
                }),
                _ => json!({"type": "object", "additionalProperties": values}),
            };
            vec![schema]
        }
    }
}

fn any_of(choices: Vec<Value>) -> Value {
    match <[Value; 1]>::try_from(choices) {
        Ok([only]) => only,
        Err(choices) => json!({"anyOf": choices}),
    }
}

/// A single value. YAML reads plain words as numbers and booleans where they look like it; so text
/// may be those too.
fn single(spec: &ValueSpec) -> Value {
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match spec.kind {
        ValueKind::Keys => json!({"type": "object"}),
        ValueKind::Boolean => json!({"type": "boolean"}),
        ValueKind::Integer { min, max } => {
            json!({"type": "integer", "minimum": min, "maximum": max})
        }
        ValueKind::Duration { .. } => pattern("^[0-9]+(ms|s|m|h)$"),
        ValueKind::Size { .. } => pattern("^[0-9]+(KiB|MiB|GiB|KB|MB|GB)$"),
        ValueKind::Share => pattern("^0*([0-9]{1,2}|100)%$"),
        ValueKind::Rate => pattern("^[0-9]+/[smh]$"),
        ValueKind::OneOf(words) => {
            let plain = words
                .iter()
                .filter_map(|word| serde_json::from_str::<Value>(word).ok());
            let words = words.iter().map(|word| Value::from(*word));
            json!({"enum": words.chain(plain).collect::<Vec<_>>()})
        }
        ValueKind::Text(_) => match spec.pattern {
            Some(pattern) => json!({"type": ["string", "number", "boolean"], "pattern": pattern}),
            None => json!({"type": ["string", "number", "boolean"]}),
        },
    }
}
