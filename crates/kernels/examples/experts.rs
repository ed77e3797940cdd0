//! Times the experts beside a read of as many bytes, in turns: what the kernels are tuned with.
//!
//! ```console
//! cargo run --release -p moekit-kernels --example experts -- qwen3 bf16 bf16 1,16,128,512 2
//! ```
//!
//! Arguments: shape (or `H,I,E,k`), weights (one of [`FORMATS`]), activations, tokens, threads, and
//! `pin` to keep each thread on a CPU of its own.
//! Activations of `int8` are quantized to integers per token.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use moekit_kernels::probe::{Arithmetic, Probe};
use moekit_kernels::{ActivationQuantMode, CpuKernel, ExpertBatch, PreparedExperts, Rows};
use moekit_quant::{
    Activation, ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, ExpertMlp,
    ExpertWeights, PackedMatrix, ScaleFormat, ScaleGrid,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long each case is measured, after a first run.
const TIME: Duration = Duration::from_secs(4);
const MIN_ROUNDS: usize = 5;

/// Numbers that look random, quickly.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, len: usize, mask: u8) -> Vec<u8> {
        (0..len).map(|_| (self.bits() >> 30) as u8 & mask).collect()
    }

    fn linear(&mut self, format: &Format, shape: [usize; 2]) -> Result<ExpertLinear> {
        let [rows, cols] = shape;
        let size = 1.0 / (cols as f32).sqrt();
        let count = rows * cols;
        let codes = match format.codes {
            CodeFormat::F32 => (0..count)
                .flat_map(|_| (self.unit() * size).to_le_bytes())
                .collect(),
            CodeFormat::F16 => (0..count)
                .flat_map(|_| half::f16::from_f32(self.unit() * size).to_le_bytes())
                .collect(),
            CodeFormat::BF16 => (0..count)
                .flat_map(|_| bf16::from_f32(self.unit() * size).to_le_bytes())
                .collect(),
            // No NaN.
            CodeFormat::F8E4M3 => self.bytes(count, 0xb7),
            codes => self.bytes(rows * codes.row_bytes(cols), 0xff),
        };
        let mut matrix = PackedMatrix::contiguous(format.codes, shape, codes.into())?;
        if let Some((scales, [height, width])) = format.scales {
            let block = [height, if width == 0 { cols } else { width }];
            let blocks = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
            let grid = |format: ScaleFormat, bytes: Vec<u8>| {
                let strides = [blocks[1] * format.bytes(), format.bytes()];
                ScaleGrid::new(format, blocks, block, strides, bytes.into())
            };
            let one = match scales {
                ScaleFormat::F32 => (size / 64.0).to_le_bytes().to_vec(),
                ScaleFormat::BF16 => bf16::from_f32(size / 8.0).to_le_bytes().to_vec(),
                ScaleFormat::F8E8M0 => vec![121],
                _ => vec![0x10],
            };
            let count = blocks[0] * blocks[1];
            matrix = matrix.with_scales(grid(scales, one.repeat(count))?)?;
            if format.zero_points {
                let zero_points = self.bytes(count, 7);
                matrix = matrix.with_zero_points(grid(ScaleFormat::I8, zero_points)?)?;
            }
        }
        let mut linear = ExpertLinear::new(matrix);
        linear.input_quant =
            (format.codes == CodeFormat::I8).then_some(ActivationQuant::PerToken {
                format: ActivationFormat::I8,
            });
        Ok(linear)
    }
}

struct Format {
    name: &'static str,
    codes: CodeFormat,
    /// Format and block; a width of 0 is that of the matrix.
    scales: Option<(ScaleFormat, [usize; 2])>,
    zero_points: bool,
}

impl Format {
    const fn plain(name: &'static str, codes: CodeFormat) -> Self {
        Self {
            name,
            codes,
            scales: None,
            zero_points: false,
        }
    }

    const fn scaled(
        name: &'static str,
        codes: CodeFormat,
        scales: ScaleFormat,
        block: [usize; 2],
    ) -> Self {
        Self {
            scales: Some((scales, block)),
            ..Self::plain(name, codes)
        }
    }
}

const FORMATS: [Format; 11] = [
    Format::plain("f32", CodeFormat::F32),
    Format::plain("f16", CodeFormat::F16),
    Format::plain("bf16", CodeFormat::BF16),
    Format::scaled("int8", CodeFormat::I8, ScaleFormat::F32, [1, 0]),
    Format::scaled("fp8", CodeFormat::F8E4M3, ScaleFormat::F32, [128, 128]),
    Format::scaled("mxfp8", CodeFormat::F8E4M3, ScaleFormat::F8E8M0, [1, 32]),
    Format::scaled("mxfp4", CodeFormat::F4E2M1, ScaleFormat::F8E8M0, [1, 32]),
    Format::scaled("nvfp4", CodeFormat::F4E2M1, ScaleFormat::F8E4M3, [1, 16]),
    Format::scaled("int4g32", CodeFormat::I4Offset, ScaleFormat::BF16, [1, 32]),
    Format::scaled(
        "int4g128",
        CodeFormat::I4Offset,
        ScaleFormat::BF16,
        [1, 128],
    ),
    Format {
        zero_points: true,
        ..Format::scaled(
            "int4z128",
            CodeFormat::I4Offset,
            ScaleFormat::BF16,
            [1, 128],
        )
    },
];

fn sizes(shape: &str) -> Result<[usize; 4]> {
    Ok(match shape {
        "qwen3" => [2048, 768, 128, 8],
        "small" => [1024, 3584, 8, 2],
        "gpt-oss" => [2880, 2880, 32, 4],
        "mixtral" => [4096, 14336, 8, 2],
        other => {
            let numbers: Vec<usize> = other
                .split(',')
                .map(str::parse)
                .collect::<std::result::Result<_, _>>()?;
            numbers.try_into().map_err(|_| "four numbers: H,I,E,k")?
        }
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).map_or(default, |a| a).to_owned();
    let [hidden, width, num_experts, top_k] = sizes(&argument(0, "qwen3"))?;
    let name = argument(1, "bf16");
    let format = FORMATS.iter().find(|f| f.name == name);
    let format = format.ok_or_else(|| format!("no weights of {name} here"))?;
    let narrow = argument(2, "bf16") == "bf16";
    let tokens: Vec<usize> = argument(3, "1,16,128,512")
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let threads = argument(4, "2").parse()?;
    let kernel = match argument(5, "").as_str() {
        "pin" => CpuKernel::with_bound_threads(threads)?,
        "" => CpuKernel::with_threads(threads)?,
        other => return Err(format!("`{other}` after the threads, expected `pin`").into()),
    };

    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut experts = Vec::new();
    for _ in 0..num_experts {
        let gate = noise.linear(format, [width, hidden])?;
        let up = noise.linear(format, [width, hidden])?;
        let down = noise.linear(format, [hidden, width])?;
        experts.push(Arc::new(ExpertMlp::new(Some(gate), up, down)?));
    }
    let expert_bytes = experts[0].num_bytes();
    let experts = PreparedExperts::new(ExpertWeights::new(hidden, width, experts)?)?;
    let mut probe = Probe::new(&kernel, 512 << 20)?;

    for num_tokens in tokens {
        let x: Vec<f32> = (0..num_tokens * hidden).map(|_| noise.unit()).collect();
        let narrow_x: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
        let weights = vec![1.0 / top_k as f32; num_tokens * top_k];
        let (mut times, mut reads, mut fractions, mut peaks) = (vec![], vec![], vec![], vec![]);
        let mut bytes = 0;
        let start = Instant::now();
        let mut round = 0;
        while round <= MIN_ROUNDS || start.elapsed() < TIME {
            // Other experts each time, so that no weight is in a cache.
            let mut ids = Vec::new();
            for _ in 0..num_tokens {
                let mut chosen = BTreeSet::new();
                while chosen.len() < top_k {
                    chosen.insert((noise.bits() >> 20) as usize % num_experts);
                }
                ids.extend(chosen.iter().map(|&e| e as i64));
            }
            bytes = ids.iter().collect::<BTreeSet<_>>().len() * expert_bytes;
            let rows = match narrow {
                true => Rows::Bf16(&narrow_x),
                false => Rows::F32(&x),
            };
            let batch = ExpertBatch::new(rows, hidden, &ids, &weights, top_k)?
                .with_activation_quant(ActivationQuantMode::Emulate);
            let began = Instant::now();
            let out = kernel.experts(&experts, Activation::SILU, &batch)?;
            let time = began.elapsed().as_secs_f64();
            std::hint::black_box(out);
            let read = probe.read(bytes).as_secs_f64();
            let arithmetic = match format.codes {
                CodeFormat::I8 => Arithmetic::Int8,
                CodeFormat::F32 | CodeFormat::F16 => Arithmetic::F32,
                _ if narrow => Arithmetic::Bf16,
                _ => Arithmetic::F32,
            };
            let peak = probe.peak(arithmetic, Duration::from_millis(10));
            if round > 0 {
                times.push(time);
                reads.push(read);
                fractions.push(read / time);
                peaks.push(peak / 1e9);
            }
            round += 1;
        }
        let flops = (num_tokens * top_k * 6 * hidden * width) as f64;
        let (time, read, peak) = (median(times), median(reads), median(peaks));
        println!(
            "M {num_tokens:5}: {:8.3} ms  {:6.1} GB/s  of read {:5.2} ({:5.1} GB/s)  {:6.1} GFLOP/s  of peak {:5.2} ({peak:5.1})",
            time * 1e3,
            bytes as f64 / time / 1e9,
            median(fractions),
            bytes as f64 / read / 1e9,
            flops / time / 1e9,
            flops / time / 1e9 / peak,
        );
    }
    Ok(())
}
