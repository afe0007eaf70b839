//! Texts about what an operator has set for a backend, for the screens of `balancer status`.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use super::table::age;

/// State and weight that an operator has set for a backend.
#[derive(Debug, Deserialize)]
pub(super) struct OverrideStatus {
    state: Option<OverrideEntry>,
    weight: Option<OverrideEntry>,
}

#[derive(Debug, Deserialize)]
struct OverrideEntry {
    /// A state or a number.
    value: Value,
    by: String,
    ends_in_seconds: Option<f64>,
    note: Option<String>,
}

impl OverrideEntry {
    /// For example `set by root, ends in 9m 3s: new kernel`.
    fn text(&self) -> String {
        let mut text = format!("set by {}", self.by);
        if let Some(left) = self.ends_in_seconds {
            // Writing to a string cannot fail.
            let _ = write!(text, ", ends in {}", age(left));
        }
        if let Some(note) = &self.note {
            let _ = write!(text, ": {note}");
        }
        text
    }
}

impl OverrideStatus {
    /// Notes beside the state and the weight; `file` is the weight of the file.
    pub(super) fn notes(&self, file: u16) -> Vec<String> {
        let state = self.state.as_ref().map(OverrideEntry::text);
        let weight = self.weight.as_ref().map(OverrideEntry::text);
        let weight = weight.map(|text| format!("weight {text} (file: {file})"));
        state.into_iter().chain(weight).collect()
    }

    /// The same with the state and the weight, where nothing else shows them.
    pub(super) fn values(&self) -> Vec<String> {
        let value = |value: &Value| match value {
            Value::String(state) => state.clone(),
            weight => format!("weight {weight}"),
        };
        let entries = self.state.iter().chain(&self.weight);
        entries
            .map(|one| format!("{} {}", value(&one.value), one.text()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_has_the_operator_the_end_and_the_note() {
        let document = json!({
            "state": {"value": "draining", "by": "lea", "ends_in_seconds": 543.2, "note": "new kernel"},
            "weight": {"value": 7, "by": "token", "ends_in_seconds": null, "note": null},
        });
        let overridden: OverrideStatus = serde_json::from_value(document).unwrap();
        let state = "set by lea, ends in 9m 3s: new kernel";
        assert_eq!(
            overridden.notes(1),
            [state, "weight set by token (file: 1)"]
        );
        let values = [
            format!("draining {state}"),
            "weight 7 set by token".to_owned(),
        ];
        assert_eq!(overridden.values(), values);
    }
}
