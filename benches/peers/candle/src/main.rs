//! The fused experts in candle, as its models have them: a loop over the experts that have tokens.
//!
//! The first line on stdin is a configuration, the next ones are `layers N...`, batches one right
//! after the other; each is answered by one line of JSON. `kernels.py` starts it.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Config {
    dtype: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_experts: usize,
    batches: Vec<Routing>,
}

#[derive(Deserialize)]
struct Routing {
    tokens: usize,
    top_k: usize,
    local_ids: Vec<i64>,
    weights: Vec<f32>,
}

/// One expert, weights `[out, in]`.
struct Expert {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// Rows and weights of each expert that has tokens.
struct Batch {
    hidden: Tensor,
    experts: BTreeMap<usize, (Vec<u32>, Vec<f32>)>,
}

impl Batch {
    fn new(routing: &Routing, hidden_size: usize, dtype: DType) -> Result<Self> {
        let shape = (routing.tokens, hidden_size);
        let hidden = Tensor::randn(0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?;
        let mut experts = BTreeMap::<usize, (Vec<u32>, Vec<f32>)>::new();
        for (slot, (&id, &weight)) in routing.local_ids.iter().zip(&routing.weights).enumerate() {
            if let Ok(expert) = usize::try_from(id) {
                let (rows, weights) = experts.entry(expert).or_default();
                rows.push((slot / routing.top_k) as u32);
                weights.push(weight);
            }
        }
        Ok(Self { hidden, experts })
    }
}

impl Expert {
    fn random(config: &Config, dtype: DType) -> Result<Self> {
        let matrix = |rows: usize, cols: usize| {
            let size = 1.7 / (cols as f32).sqrt();
            Tensor::rand(-size, size, (rows, cols), &Device::Cpu)?.to_dtype(dtype)
        };
        let (h, i) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate: matrix(i, h)?,
            up: matrix(i, h)?,
            down: matrix(h, i)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = candle_nn::ops::silu(&x.matmul(&self.gate.t()?)?)?;
        (gate * x.matmul(&self.up.t()?)?)?.matmul(&self.down.t()?)
    }
}

fn layer(experts: &[Expert], batch: &Batch) -> Result<Tensor> {
    let mut out = batch.hidden.zeros_like()?;
    for (expert, (rows, weights)) in &batch.experts {
        let count = rows.len();
        let rows = Tensor::new(rows.as_slice(), &Device::Cpu)?;
        let weights = Tensor::new(weights.as_slice(), &Device::Cpu)?;
        let weights = weights.reshape((count, 1))?.to_dtype(out.dtype())?;
        let y = experts[*expert].forward(&batch.hidden.index_select(&rows, 0)?)?;
        out = out.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
    }
    Ok(out)
}

fn main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let config: Config = match lines.next() {
        Some(line) => serde_json::from_str(&line?).map_err(Error::wrap)?,
        None => return Ok(()),
    };
    let dtype = match config.dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => candle_core::bail!("no {other} weights, only f32 and bf16"),
    };
    let experts = (0..config.num_experts).map(|_| Expert::random(&config, dtype));
    let experts = experts.collect::<Result<Vec<_>>>()?;
    let batches = config
        .batches
        .iter()
        .map(|b| Batch::new(b, config.hidden_size, dtype));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    println!("{}", json!({ "ready": true }));
    for line in lines {
        let line = line?;
        let mut times = Vec::new();
        for number in line.split(' ').skip(1) {
            let Some(batch) = number.parse().ok().and_then(|n: usize| batches.get(n)) else {
                candle_core::bail!("`{line}` is no command");
            };
            let start = Instant::now();
            layer(&experts, batch)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("{}", json!({ "ms": times }));
    }
    Ok(())
}
