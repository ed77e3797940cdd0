//! What a checkpoint holds of a layer beside what the layer's family speaks of.

use moekit_quant::{ExpertLayout, MoeLayerSpec};

/// The first tensor that changes what the layer computes and that the layer does not name: left out
/// in silence, it would make the result wrong.
///
/// # Arguments
///
/// - `names` - the names of the layer's tensors.
pub(crate) fn forgotten<'a>(
    layer: &MoeLayerSpec,
    mut names: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let parts = parts(layer);
    names.find(|name| {
        let is_shared = name.contains("shared_expert") && layer.shared.is_none();
        let is_correction =
            name.contains("e_score_correction_bias") && layer.router.correction_bias.is_none();
        is_shared || is_correction || parts.iter().any(|part| part.forgets(name))
    })
}

/// A module, or a stack of experts, and what is known of its biases.
struct Part<'a> {
    /// What the names of its tensors begin with.
    start: String,
    /// Whether each of its linears has a bias.
    biased: bool,
    /// Tensors of biases that are known by name.
    named: Vec<&'a str>,
}

impl Part<'_> {
    /// Whether the tensor is a bias, or a scale of the inputs, that the part does not know.
    fn forgets(&self, name: &str) -> bool {
        let Some(inside) = name.strip_prefix(&self.start) else {
            return false;
        };
        let is_bias = inside.ends_with("bias");
        let is_known = (self.biased && inside.ends_with(".bias")) || self.named.contains(&name);
        (is_bias && !is_known) || inside.ends_with("pre_quant_scale")
    }
}

fn parts(layer: &MoeLayerSpec) -> Vec<Part<'_>> {
    let module = |name: &str, biased: bool| Part {
        start: format!("{name}."),
        biased,
        named: Vec::new(),
    };
    let router = &layer.router;
    let mut parts = vec![Part {
        named: [&router.bias, &router.correction_bias]
            .into_iter()
            .filter_map(Option::as_deref)
            .collect(),
        ..module(weightless(&router.weight), false)
    }];
    let stacks = match &layer.experts {
        ExpertLayout::PerExpert {
            module: name, bias, ..
        } => {
            parts.push(module(name, *bias));
            Vec::new()
        }
        ExpertLayout::Fused { gate_up, down, .. } => vec![gate_up, down],
        ExpertLayout::Stacked { gate, up, down } => gate.iter().chain([up, down]).collect(),
        // A layout of another kind says itself what it reads.
        _ => Vec::new(),
    };
    parts.extend(stacks.into_iter().map(|stack| Part {
        start: stack.name.clone(),
        biased: false,
        named: stack.bias.as_deref().into_iter().collect(),
    }));
    if let Some(shared) = &layer.shared {
        parts.push(module(&shared.module, shared.bias));
        parts.extend(
            shared
                .gate
                .iter()
                .map(|gate| module(weightless(gate), false)),
        );
    }
    parts
}

/// The module of a weight.
fn weightless(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}
