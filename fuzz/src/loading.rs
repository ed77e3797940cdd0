//! Any layer of any configuration, loaded from a checkpoint that becomes what is asked for.

use arbitrary::{Result, Unstructured};
use moekit_quant::{
    ActivationQuant, ExpertMlp, ExpertWeights, MoeLayerSpec, PackedMatrix, QuantBackend,
    QuantError, backend_for,
};
use moekit_routing::{ExpertRouting, RankView};
use serde_json::Value;

use crate::layers::{alone, layer, ranks};
use crate::pick::pick;
use crate::source::{DTYPES, Damage, ObedientSource};

/// Errors that a source may need to become right: three for each tensor of the largest layer.
const MAX_ERRORS: usize = 256;

/// Companions that a checkpoint may have and no format must have.
const OPTIONAL: &[&str] = &["weight_shape", "weight_g_idx", "input_scale", "bias"];

/// Runs the backend of a configuration.
pub(crate) fn target(data: &[u8], config: impl Fn(&mut Unstructured<'_>) -> Result<Value>) {
    // An input that is too short is none.
    let _ = run(&mut Unstructured::new(data), config);
}

fn run(
    u: &mut Unstructured<'_>,
    config: impl Fn(&mut Unstructured<'_>) -> Result<Value>,
) -> Result<()> {
    let layer = layer(u)?;
    let ranks = ranks(u, layer.num_experts)?;
    let source = ObedientSource::arbitrary(u)?;
    for _ in 0..u.int_in_range(0..=2)? {
        let projection = pick(u, &["gate_proj", "up_proj", "down_proj", "gate_up_proj"])?;
        let expert = pick(u, &["", "0.", "1."])?;
        let name = format!(
            "layers.0.experts.{expert}{projection}.{}",
            pick(u, OPTIONAL)?
        );
        source.add(&name, pick(u, DTYPES)?, &[u.int_in_range(0..=3)?]);
    }
    let config = config(u)?;
    let Ok(backend) = backend_for(Some(&config)) else {
        return Ok(());
    };
    check(&*backend, &layer, &source, &ranks);
    let count = u.int_in_range(1..=3)?;
    for _ in 0..count {
        source.damage(u.arbitrary::<u8>()?.into(), &Damage::arbitrary(u)?);
    }
    if let Ok(weights) = backend.load_experts(&layer, &source, &alone(layer.num_experts)) {
        sound(&weights);
    }
    Ok(())
}

/// Loads a layer on one rank and on many, and makes sure that they hold the same experts.
fn check(
    backend: &dyn QuantBackend,
    layer: &MoeLayerSpec,
    source: &ObedientSource,
    ranks: &[RankView],
) {
    let Ok(all) = settle(backend, layer, source, &alone(layer.num_experts)) else {
        return;
    };
    sound(&all);
    for rank in ranks {
        let own = match settle(backend, layer, source, rank) {
            Ok(own) => own,
            // Not every layer can fuse so many shared experts.
            Err(_) if rank.num_shared_experts() > 0 => continue,
            Err(error) => panic!("one rank can load what another cannot: {error}"),
        };
        sound(&own);
        let table = rank.routing_table();
        let held = table.local_to_global(rank.rank()).expect("the rank exists");
        for (expert, id) in own.experts.iter().zip(held) {
            if let Some(same) = all.experts.get(id.index()) {
                equal(expert, same);
            }
        }
    }
}

/// Loads, doing what each error says.
pub(crate) fn settle(
    backend: &dyn QuantBackend,
    layer: &MoeLayerSpec,
    source: &ObedientSource,
    rank: &RankView,
) -> std::result::Result<ExpertWeights, QuantError> {
    for _ in 0..MAX_ERRORS {
        match backend.load_experts(layer, source, rank) {
            Ok(weights) => return Ok(weights),
            Err(error) if source.obey(&error) => {}
            Err(error) => return Err(error),
        }
    }
    panic!("whoever does what the errors say does not get on");
}

/// What holds for all weights that are loaded.
pub(crate) fn sound(weights: &ExpertWeights) {
    for expert in weights.experts.iter().chain(&weights.shared) {
        for linear in expert.linears() {
            let matrix = &linear.weight;
            assert!(matrix.global_scale().is_finite());
            let mut row = vec![0.0; matrix.cols()];
            for r in [0, matrix.rows() / 2, matrix.rows() - 1] {
                matrix.dequantize_row(r, &mut row).expect("the row exists");
            }
            assert!(matrix.dequantize_row(matrix.rows(), &mut row).is_err());
            if let Some(quant) = linear.input_quant {
                if let ActivationQuant::Static { scale, .. } | ActivationQuant::Nvfp4 { scale } =
                    quant
                {
                    assert!(scale.is_finite() && scale > 0.0, "scale {scale}");
                }
                quant.apply(&mut row);
            }
        }
        let half = expert.intermediate_size() / 2;
        if let Ok(part) = expert.slice(half..expert.intermediate_size()) {
            let whole = row_of(&expert.up.weight, half);
            assert_eq!(bits(&row_of(&part.up.weight, 0)), bits(&whole));
            let whole = row_of(&expert.down.weight, 0);
            assert_eq!(bits(&row_of(&part.down.weight, 0)), bits(&whole[half..]));
        }
    }
    assert!(weights.num_bytes() > 0 || weights.experts.is_empty());
}

fn equal(a: &ExpertMlp, b: &ExpertMlp) {
    for (a, b) in a.linears().zip(b.linears()) {
        assert_eq!(a.input_quant, b.input_quant);
        assert_eq!(a.bias.as_deref().map(bits), b.bias.as_deref().map(bits));
        for row in [0, a.weight.rows() - 1] {
            assert_eq!(bits(&row_of(&a.weight, row)), bits(&row_of(&b.weight, row)));
        }
    }
}

fn row_of(matrix: &PackedMatrix, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; matrix.cols()];
    matrix
        .dequantize_row(row, &mut values)
        .expect("the row exists");
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
