use moekit_quant::ActivationQuant;

/// Whether the inputs of linears are quantized as their checkpoint means them to be.
///
/// A checkpoint with quantized activations is made for hardware that multiplies codes: before each
/// product, the row `x` becomes `q * s`, `q` of a format of few bits. [`ExpertLinear::input_quant`](moekit_quant::ExpertLinear::input_quant)
/// says how `s` comes about:
///
/// | scheme | `s` | of |
/// |---|---|---|
/// | static | measured when the checkpoint was made | [FP8](https://arxiv.org/abs/2209.05433), integers |
/// | per token | from the largest magnitude of the row | [compressed-tensors](https://github.com/vllm-project/compressed-tensors) |
/// | per group | from that of some consecutive features | [DeepSeek-V3](https://arxiv.org/abs/2412.19437), section 3.3: 128 features |
/// | microscaling | a power of two per 32 features | [OCP MX 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf) |
/// | NVFP4 | an E4M3 scale per 16 features under a static one | [NVFP4](https://arxiv.org/abs/2509.25149) |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActivationQuantMode {
    /// Weights alone are quantized: `W x`, with `x` as it comes.
    #[default]
    Off,
    /// `W dequantize(quantize(x))` with sums in `f32`: what quantized activations do to the
    /// output, on hardware that has none. 8-bit integers under one scale per row and per column are
    /// multiplied as integers, whose sums are exact. Gate and up take the layer's input (router weight
    /// included if it is applied there), down takes the intermediate row after the activation. A
    /// linear without
    /// [`input_quant`](moekit_quant::ExpertLinear::input_quant) takes `x` as it comes.
    Emulate,
}

impl ActivationQuantMode {
    /// The quantization that the input of a linear gets, whose checkpoint means it to get `meant`.
    pub fn input_quant(self, meant: Option<ActivationQuant>) -> Option<ActivationQuant> {
        match self {
            Self::Off => None,
            Self::Emulate => meant,
        }
    }
}
