//! Rows of numbers, with or without the columns that say which step and layer they are.

use std::path::Path;

use csv::StringRecord;

use super::LoadFile;
use super::array::{Array, MAX_VALUES};
use crate::EvalError;

/// The columns before the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    None,
    Layer,
    StepAndLayer,
}

impl Columns {
    fn of(header: &StringRecord) -> Self {
        let is = |i, name: &str| header.get(i).is_some_and(|c| c.eq_ignore_ascii_case(name));
        match (is(0, "step") && is(1, "layer"), is(0, "layer")) {
            (true, _) => Self::StepAndLayer,
            (_, true) => Self::Layer,
            _ => Self::None,
        }
    }

    fn count(self) -> usize {
        self as usize
    }
}

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Array, EvalError> {
    let content = |message: String| EvalError::content(path, message);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(bytes);
    let mut columns = Columns::None;
    let mut rows: Vec<(u64, [usize; 2])> = Vec::new();
    let mut values = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|error| content(error.to_string()))?;
        if i == 0 {
            columns = Columns::of(&record);
            if columns != Columns::None {
                continue;
            }
        }
        let line = record.position().map_or(0, csv::Position::line);
        rows.push((
            line,
            index_of(&record, columns, line, rows.len()).map_err(content)?,
        ));
        for (column, field) in record.iter().enumerate().skip(columns.count()) {
            let value = field.parse::<f64>().map_err(|_| {
                content(format!(
                    "line {line}, column {}: `{field}` is not a number",
                    column + 1
                ))
            })?;
            values.push(value);
        }
        if values.len() > MAX_VALUES {
            return Err(content(format!("more than {MAX_VALUES} numbers")));
        }
    }
    let experts = values.len() / rows.len().max(1);
    let shape = match columns {
        Columns::None | Columns::Layer => vec![rows.len(), experts],
        Columns::StepAndLayer => {
            let layers = rows.iter().take_while(|(_, [step, _])| *step == 0).count();
            vec![rows.len() / layers.max(1), layers, experts]
        }
    };
    check_order(&rows, shape[shape.len() - 2]).map_err(content)?;
    Ok(Array { shape, values })
}

/// Step and layer of a row: what it says, or its place.
fn index_of(
    record: &StringRecord,
    columns: Columns,
    line: u64,
    row: usize,
) -> Result<[usize; 2], String> {
    let cell = |i| {
        let field = record.get(i).unwrap_or_default();
        field.parse().map_err(|_| {
            format!(
                "line {line}, column {}: `{field}` is not a step or layer, 0, 1, ..",
                i + 1
            )
        })
    };
    Ok(match columns {
        Columns::None => [0, row],
        Columns::Layer => [0, cell(0)?],
        Columns::StepAndLayer => [cell(0)?, cell(1)?],
    })
}

/// Rows run through the layers of one step after the other, and none is missing.
fn check_order(rows: &[(u64, [usize; 2])], layers: usize) -> Result<(), String> {
    for (row, (line, got)) in rows.iter().enumerate() {
        let expected = [row / layers.max(1), row % layers.max(1)];
        if *got != expected {
            return Err(format!(
                "line {line} is step {}, layer {}; expected step {}, layer {}",
                got[0], got[1], expected[0], expected[1]
            ));
        }
    }
    if !rows.len().is_multiple_of(layers.max(1)) {
        return Err(format!(
            "the last step has {} layers, the first has {layers}",
            rows.len() % layers
        ));
    }
    Ok(())
}

pub(super) fn write(load: &LoadFile) -> Result<Vec<u8>, String> {
    let text = |error: csv::Error| error.to_string();
    let mut writer = csv::Writer::from_writer(Vec::new());
    if let Some(trace) = load.trace() {
        let header = ["step", "layer"].map(str::to_owned);
        let experts = (0..trace.num_experts()).map(|e| e.to_string());
        writer
            .write_record(header.into_iter().chain(experts))
            .map_err(text)?;
    }
    for (step, layers) in load.steps().iter().enumerate() {
        for (layer, values) in layers.layers().enumerate() {
            if load.trace().is_some() {
                writer.write_field(step.to_string()).map_err(text)?;
                writer.write_field(layer.to_string()).map_err(text)?;
            }
            writer
                .write_record(values.iter().map(f64::to_string))
                .map_err(text)?;
        }
    }
    writer.into_inner().map_err(|error| error.to_string())
}
