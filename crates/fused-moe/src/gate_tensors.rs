use moekit_quant::{MoeLayerSpec, QuantError, TensorSource, check_floats, read_floats};

/// Gate tensors of a checkpoint, in host memory.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GateTensors {
    /// `[num_experts, hidden_size]`
    pub weight: Vec<f32>,
    /// `[num_experts]`
    pub bias: Option<Vec<f32>>,
    /// `[num_experts]`
    pub correction_bias: Option<Vec<f32>>,
    /// Gate of the shared experts, `[hidden_size]`.
    pub shared_gate: Option<Vec<f32>>,
}

impl GateTensors {
    /// A gate of weights alone.
    pub fn new(weight: Vec<f32>) -> Self {
        Self {
            weight,
            ..Self::default()
        }
    }

    /// Reads the gate that a layer names.
    ///
    /// # Errors
    ///
    /// If a tensor is missing, or is not one of floats of the layer's size.
    pub fn read(spec: &MoeLayerSpec, tensors: &dyn TensorSource) -> Result<Self, QuantError> {
        let names = Names::of(spec);
        let read = |tensor: Option<Named<'_>>| {
            tensor
                .map(|(name, len)| read_floats(tensors, name, len))
                .transpose()
        };
        let (weight, len) = names.weight;
        Ok(Self {
            weight: read_floats(tensors, weight, len)?,
            bias: read(names.bias)?,
            correction_bias: read(names.correction_bias)?,
            shared_gate: read(names.shared_gate)?,
        })
    }

    /// Whether [`GateTensors::read`] would find what it needs; nothing is read.
    ///
    /// # Errors
    ///
    /// As of [`GateTensors::read`].
    pub fn check(spec: &MoeLayerSpec, tensors: &dyn TensorSource) -> Result<(), QuantError> {
        let names = Names::of(spec);
        let optional = [names.bias, names.correction_bias, names.shared_gate];
        std::iter::once(names.weight)
            .chain(optional.into_iter().flatten())
            .try_for_each(|(name, len)| check_floats(tensors, name, len))
    }
}

/// The name of a tensor and how many values it has.
type Named<'a> = (&'a str, usize);

/// The tensors of a layer's gate.
struct Names<'a> {
    weight: Named<'a>,
    bias: Option<Named<'a>>,
    correction_bias: Option<Named<'a>>,
    shared_gate: Option<Named<'a>>,
}

impl<'a> Names<'a> {
    fn of(spec: &'a MoeLayerSpec) -> Self {
        let (experts, hidden) = (spec.num_experts, spec.hidden_size);
        let per_expert = |name: &'a Option<String>| name.as_deref().map(|name| (name, experts));
        let router = &spec.router;
        let shared_gate = spec.shared.as_ref().and_then(|s| s.gate.as_deref());
        Self {
            weight: (&router.weight, experts.saturating_mul(hidden)),
            bias: per_expert(&router.bias),
            correction_bias: per_expert(&router.correction_bias),
            shared_gate: shared_gate.map(|name| (name, hidden)),
        }
    }
}
