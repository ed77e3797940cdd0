//! A layer that is timed by another program, which alternates it with other implementations.
//!
//! Each line on stdin is answered by one line of JSON on stdout:
//!
//! | line | answer |
//! |---|---|
//! | `batches` | the routing of each batch: `tokens`, `top_k`, `local_ids`, `weights`, and the `weight_bytes` and `operations` of the experts that have tokens |
//! | `layers N...` | `ms` of each of these batches through the experts, one right after the other |
//! | `gate N` | `ms` of batch `N` through the gate |
//! | `read BYTES` | `ms` to stream so many bytes |
//! | `peak` | `gflops` of the arithmetic that bounds the layer |

use std::io::{self, BufRead};
use std::path::Path;
use std::time::Duration;

use moekit::kernels::probe::Probe;
use serde_json::{Value, json};

use super::layer::Layer;
use super::measure::seconds;
use super::routing::Tokens;
use crate::error::{CliError, Result};
use crate::output::print_line;

const PEAK_TIME: Duration = Duration::from_millis(5);

/// Answers until stdin ends.
pub(super) fn answer(layer: &Layer<'_>, batches: &[Tokens], probe: &mut Probe) -> Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| CliError::file(Path::new("stdin"), e))?;
        print_line(&answer_line(&line, layer, batches, probe)?.to_string())?;
    }
    Ok(())
}

fn answer_line(
    line: &str,
    layer: &Layer<'_>,
    batches: &[Tokens],
    probe: &mut Probe,
) -> Result<Value> {
    let unknown = || {
        let last = batches.len().saturating_sub(1);
        CliError::usage(format!(
            "`{line}` is no command: there are `batches`, `layers N...` and `gate N` for N from 0 to \
             {last}, `read BYTES` and `peak`"
        ))
    };
    let (command, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let number = |text: &str| text.parse::<usize>().map_err(|_| unknown());
    let batch = |text| number(text).and_then(|n| batches.get(n).ok_or_else(unknown));
    let ms = |seconds: f64| json!({ "ms": seconds * 1e3 });
    let run = |batch| seconds(|| layer.run(batch)).map(|s| s * 1e3);
    Ok(match command {
        "batches" => batches.iter().map(|batch| describe(layer, batch)).collect(),
        "layers" => {
            let chosen = argument.split(' ').map(batch).collect::<Result<Vec<_>>>()?;
            json!({ "ms": chosen.into_iter().map(run).collect::<Result<Vec<_>>>()? })
        }
        "gate" => batch(argument).and_then(|batch| seconds(|| layer.run_gate(batch)).map(ms))?,
        "read" => ms(probe.read(number(argument)?).as_secs_f64()),
        "peak" => json!({ "gflops": probe.peak(layer.arithmetic(), PEAK_TIME) / 1e9 }),
        _ => return Err(unknown()),
    })
}

fn describe(layer: &Layer<'_>, batch: &Tokens) -> Value {
    let top_k = layer.shape.top_k;
    json!({
        "tokens": batch.local_ids.len() / top_k,
        "top_k": top_k,
        "local_ids": batch.local_ids,
        "weights": batch.weights,
        "weight_bytes": layer.weight_bytes(batch),
        "operations": layer.operations(batch),
    })
}
