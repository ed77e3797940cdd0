//! Every layout of experts, cut out of tensors that hold more than one of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod layers;

use moekit_quant::{
    CodeFormat, ExpertLayout, ExpertLinear, ExpertMlp, FusedOrder, FusedTensor, LinearSite,
    MemorySource, MlpNames, MoeLayerSpec, PackedMatrix, Projection, SharedExpertsSpec, TensorDtype,
    TensorSource, load_linears,
};

use layers::*;

/// Per tensor, channel, group, and blocks that divide neither the sizes nor the halves.
const BLOCKS: [[usize; 2]; 6] = [
    [usize::MAX, usize::MAX],
    [1, usize::MAX],
    [1, 4],
    [4, 3],
    [4, usize::MAX],
    [5, 16],
];

#[test]
fn fused_tensors() {
    let mut noise = Noise(7);
    for block in BLOCKS {
        for transposed in [false, true] {
            for order in [FusedOrder::Halves, FusedOrder::Interleaved] {
                let gate_up = Stack::random(&mut noise, E, [2 * I, H], block);
                let down = Stack::random(&mut noise, E, [H, I], block);
                let mut tensors = MemorySource::default();
                gate_up.store(&mut tensors, ["gu", "gu_scale"], transposed, false);
                down.store(&mut tensors, ["d.weight", "d.scale"], transposed, true);
                let mut names = [FusedTensor::parameter("gu"), FusedTensor::module("d")];
                if transposed {
                    names = names.map(FusedTensor::transposed);
                }
                let [gate_up_name, down_name] = names;
                let layer = layer(ExpertLayout::Fused {
                    gate_up: gate_up_name,
                    order,
                    down: down_name,
                });
                let loaded = load_linears(&layer, &tensors, &backwards(0), &load(block));
                let odd = block[0] < usize::MAX && block[0] > 1 && block[0] % 2 == 1;
                if order == FusedOrder::Interleaved && odd {
                    let error = loaded.unwrap_err().to_string();
                    assert!(error.contains("blocks of 5 interleaved rows"), "{error}");
                    continue;
                }
                let expected = |expert: usize| {
                    let rows = gate_up.weights(expert);
                    let (gate, up) = match order {
                        FusedOrder::Halves => (rows[..I].to_vec(), rows[I..].to_vec()),
                        _ => (
                            rows.iter().step_by(2).cloned().collect(),
                            rows.iter().skip(1).step_by(2).cloned().collect(),
                        ),
                    };
                    [gate, up, down.weights(expert)]
                };
                check(
                    &loaded.unwrap(),
                    expected,
                    &format!("{block:?} {transposed} {order:?}"),
                );
            }
        }
    }
}

#[test]
fn stacked_tensors() {
    let mut noise = Noise(8);
    for block in BLOCKS {
        for flat in [false, true] {
            let stack = |noise: &mut Noise, shape| Stack::random(noise, E, shape, block);
            let gate = stack(&mut noise, [I, H]);
            let up = stack(&mut noise, [I, H]);
            let down = stack(&mut noise, [H, I]);
            let mut tensors = MemorySource::default();
            gate.store(&mut tensors, ["w1", "w1_scale"], false, flat);
            up.store(&mut tensors, ["v1", "v1_scale"], false, flat);
            // DBRX: the rows of the transposed experts one below the other.
            down.store(&mut tensors, ["w2", "w2_scale"], true, flat);
            let layer = layer(ExpertLayout::Stacked {
                gate: Some(FusedTensor::parameter("w1")),
                up: FusedTensor::parameter("v1"),
                down: FusedTensor::parameter("w2").transposed(),
            });
            let weights = load_linears(&layer, &tensors, &backwards(0), &load(block)).unwrap();
            let expected = |e| [gate.weights(e), up.weights(e), down.weights(e)];
            check(&weights, expected, &format!("{block:?} {flat}"));
        }
    }
}

fn per_expert(
    tensors: &mut MemorySource,
    noise: &mut Noise,
    module: &str,
    shape: [usize; 2],
    block: [usize; 2],
) -> Dense {
    let stack = Stack::random(noise, 1, shape, block);
    let names = [format!("{module}.weight"), format!("{module}.scale")];
    stack.store(tensors, [&names[0], &names[1]], false, false);
    stack.weights(0)
}

/// Shared experts, as one MLP or cut into local slots: rows of gate and up, columns of down.
#[test]
fn shared_experts() {
    const S: usize = 2;
    let mut noise = Noise(9);
    for block in BLOCKS {
        let mut tensors = MemorySource::default();
        let mut routed = Vec::new();
        for expert in 0..E {
            let mut linear = |name: &str, shape| {
                per_expert(
                    &mut tensors,
                    &mut noise,
                    &format!("x.{expert}.{name}"),
                    shape,
                    block,
                )
            };
            routed.push([
                linear("w1", [I, H]),
                linear("w3", [I, H]),
                linear("w2", [H, I]),
            ]);
        }
        let mut linear = |name: &str, shape| {
            per_expert(&mut tensors, &mut noise, &format!("s.{name}"), shape, block)
        };
        let gate = linear("gate_proj", [S * I, H]);
        let up = linear("up_proj", [S * I, H]);
        let down = linear("down_proj", [H, S * I]);
        let mut layer = layer(ExpertLayout::PerExpert {
            module: "x".to_owned(),
            names: MlpNames::w123(),
            bias: false,
        });
        layer.shared = Some(SharedExpertsSpec::new("s", MlpNames::proj(), S * I));

        let apart = load_linears(&layer, &tensors, &backwards(0), &load(block)).unwrap();
        check(&apart, |e| routed[e].clone(), &format!("{block:?}"));
        let shared = apart.shared.unwrap();
        assert_eq!(dense(&shared.up.weight), up);
        assert_eq!(dense(&shared.down.weight), down);

        let fused = load_linears(&layer, &tensors, &backwards(S), &load(block)).unwrap();
        assert!(fused.shared.is_none());
        assert_eq!(fused.num_local_experts(), E + 1 + S);
        for (part, expert) in fused.experts[E + 1..].iter().enumerate() {
            let rows = part * I..(part + 1) * I;
            assert_eq!(
                dense(&expert.gate.as_ref().unwrap().weight),
                gate[rows.clone()]
            );
            assert_eq!(dense(&expert.up.weight), up[rows.clone()]);
            let columns: Dense = down.iter().map(|row| row[rows.clone()].to_vec()).collect();
            assert_eq!(dense(&expert.down.weight), columns, "{block:?} {part}");
        }
    }
}

#[test]
fn shared_experts_that_do_not_fit_slots_are_refused() {
    let mut layer = layer(ExpertLayout::PerExpert {
        module: "x".to_owned(),
        names: MlpNames::proj(),
        bias: false,
    });
    let load = |layer: &MoeLayerSpec| {
        let load = load([1, usize::MAX]);
        load_linears(layer, &MemorySource::default(), &rank(vec![], 1), &load)
            .unwrap_err()
            .to_string()
    };
    assert!(
        load(&layer).contains("has no shared experts"),
        "{}",
        load(&layer)
    );
    layer.shared = Some(SharedExpertsSpec::new("s", MlpNames::proj(), 7));
    assert!(
        load(&layer).contains("are 7 wide, 1 local slots are 1 * 6"),
        "{}",
        load(&layer)
    );
}

/// Nibbles along the input features of `[in / 2, out]` become rows.
#[test]
fn transposed_nibbles() {
    let mut noise = Noise(10);
    let mut bytes =
        |count: usize| -> Vec<u8> { (0..count).map(|_| noise.next(256) as u8).collect() };
    let (gate_up, down) = (bytes(E * H / 2 * 2 * I), bytes(E * I / 2 * H));
    let mut tensors = MemorySource::default();
    tensors.insert("gu", TensorDtype::U8, [E, H / 2, 2 * I], gate_up.clone());
    tensors.insert("d", TensorDtype::U8, [E, I / 2, H], down.clone());
    let layer = layer(ExpertLayout::Fused {
        gate_up: FusedTensor::parameter("gu").transposed(),
        order: FusedOrder::Interleaved,
        down: FusedTensor::parameter("d").transposed(),
    });
    let load = |site: &LinearSite, tensors: &dyn TensorSource| {
        let name = site.tensor("weight");
        let codes = site.codes(tensors, &name, CodeFormat::I4Offset, &[TensorDtype::U8])?;
        site.linear(tensors, codes)
    };
    let weights = load_linears(&layer, &tensors, &backwards(0), &load).unwrap();
    let nibble =
        |bytes: &[u8], [pairs, outs]: [usize; 2], expert: usize, out: usize, within: usize| {
            let byte = bytes[(expert * pairs + within / 2) * outs + out];
            f32::from((byte >> (within % 2 * 4)) & 15) - 8.0
        };
    let expected = |e: usize| {
        let half = |first: usize| -> Dense {
            let row = |i: usize| {
                (0..H)
                    .map(|h| nibble(&gate_up, [H / 2, 2 * I], e, 2 * i + first, h))
                    .collect()
            };
            (0..I).map(row).collect()
        };
        let row = |h: usize| (0..I).map(|i| nibble(&down, [I / 2, H], e, h, i)).collect();
        [half(0), half(1), (0..H).map(row).collect()]
    };
    check(&weights, expected, "nibbles");
}

/// Biases of fused tensors are cut as the rows are; a bias of a fused shared expert comes once.
#[test]
fn biases() {
    let mut tensors = MemorySource::default();
    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let count = |n: usize| -> Vec<f32> { (0..n).map(|i| i as f32).collect() };
    tensors.insert(
        "gu",
        TensorDtype::F32,
        [E, 2 * I, H],
        vec![0; E * 2 * I * H * 4],
    );
    tensors.insert("d", TensorDtype::F32, [E, H, I], vec![0; E * I * H * 4]);
    tensors.insert(
        "gu_bias",
        TensorDtype::F32,
        [E, 2 * I],
        floats(&count(E * 2 * I)),
    );
    tensors.insert("d_bias", TensorDtype::F32, [E, H], floats(&count(E * H)));
    let layer = layer(ExpertLayout::Fused {
        gate_up: FusedTensor::parameter("gu").with_bias("gu_bias"),
        order: FusedOrder::Interleaved,
        down: FusedTensor::parameter("d").with_bias("d_bias"),
    });
    let load = &moekit_quant::load_float_linear;
    let weights = load_linears(&layer, &tensors, &backwards(0), load).unwrap();
    let expert = &weights.experts[1];
    let gate: Vec<f32> = (0..I).map(|i| (2 * I + 2 * i) as f32).collect();
    assert_eq!(
        expert.gate.as_ref().unwrap().bias.as_deref(),
        Some(&gate[..])
    );
    let up: Vec<f32> = gate.iter().map(|g| g + 1.0).collect();
    assert_eq!(expert.up.bias.as_deref(), Some(&up[..]));
    let down: Vec<f32> = (H..2 * H).map(|i| i as f32).collect();
    assert_eq!(expert.down.bias.as_deref(), Some(&down[..]));
}

/// The outputs of fused shared experts add up, so that the bias of down comes once.
#[test]
fn biases_of_fused_shared_experts() {
    let mut tensors = MemorySource::default();
    let count = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect() };
    for (name, [rows, cols]) in [
        ("gate_proj", [2 * I, H]),
        ("up_proj", [2 * I, H]),
        ("down_proj", [H, 2 * I]),
    ] {
        let zeros = vec![0; rows * cols * 4];
        tensors.insert(
            format!("s.{name}.weight"),
            TensorDtype::F32,
            [rows, cols],
            zeros,
        );
        tensors.insert(
            format!("s.{name}.bias"),
            TensorDtype::F32,
            [rows],
            count(rows),
        );
    }
    let mut layer = layer(ExpertLayout::PerExpert {
        module: "x".to_owned(),
        names: MlpNames::proj(),
        bias: false,
    });
    let mut shared = SharedExpertsSpec::new("s", MlpNames::proj(), 2 * I);
    shared.bias = true;
    layer.shared = Some(shared);
    let load = &moekit_quant::load_float_linear;
    let weights = load_linears(&layer, &tensors, &rank(vec![], 2), load).unwrap();
    let [first, second] = &weights.experts[..] else {
        panic!("{} slots", weights.num_local_experts());
    };
    let down = |expert: &ExpertMlp| expert.down.bias.as_ref().map(Vec::len);
    assert_eq!((down(first), down(second)), (Some(H), None));
    let second_half: Vec<f32> = (I..2 * I).map(|i| i as f32).collect();
    assert_eq!(second.up.bias, Some(second_half));
}

/// What fits is a view of the source's bytes.
#[test]
fn views_are_not_copies() {
    let bytes = bytes::Bytes::from(vec![0_u8; E * 2 * I * H * 4]);
    let mut tensors = MemorySource::default();
    tensors.insert("gu", TensorDtype::F32, [E, H, 2 * I], bytes.clone());
    tensors.insert(
        "d",
        TensorDtype::F32,
        [E, I, H],
        bytes.slice(..E * I * H * 4),
    );
    let layer = layer(ExpertLayout::Fused {
        gate_up: FusedTensor::parameter("gu").transposed(),
        order: FusedOrder::Interleaved,
        down: FusedTensor::parameter("d").transposed(),
    });
    let load = &moekit_quant::load_float_linear;
    let weights = load_linears(&layer, &tensors, &backwards(0), load).unwrap();
    for expert in &weights.experts {
        for linear in expert.linears() {
            assert!(
                bytes
                    .as_ptr_range()
                    .contains(&linear.weight.codes().as_ptr())
            );
        }
    }
}

#[test]
fn sites_know_their_projection() {
    let layer = layer(ExpertLayout::PerExpert {
        module: "x".to_owned(),
        names: MlpNames::w123(),
        bias: false,
    });
    let load = |site: &LinearSite, _: &dyn TensorSource| {
        let role = match site.module().rsplit('.').next() {
            Some("w1") => Projection::Gate,
            Some("w3") => Projection::Up,
            _ => Projection::Down,
        };
        assert_eq!(site.projection(), role);
        let [rows, cols] = site.shape();
        let codes = vec![0; rows * cols];
        PackedMatrix::contiguous(CodeFormat::I8, [rows, cols], codes.into()).map(ExpertLinear::new)
    };
    load_linears(&layer, &MemorySource::default(), &backwards(0), &load).unwrap();
}
