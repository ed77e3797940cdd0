use moekit_quant::{ActivationFormat, QuantError};

use crate::config::{ConfigGroup, Dynamic, QuantizationArgs, error, unsupported};

/// Group sizes that define a format.
pub(crate) const NVFP4_GROUP: usize = 16;
pub(crate) const MX_GROUP: usize = 32;

/// How the linears of a group are stored and what they expect of their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    pub(crate) weights: Weights,
    pub(crate) inputs: Inputs,
    /// Whether the output is meant to be quantized, too.
    pub(crate) quantizes_output: bool,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// As floats.
    Dense,
    /// Integers packed into 32-bit words.
    Packed(Integers),
    /// Integers, one per byte.
    Bytes(Integers),
    /// E4M3 under one float per block.
    Fp8([usize; 2]),
    /// E4M3 under one power of two per group.
    Mxfp8,
    /// E2M1 under one E4M3 scale per group and one float above.
    Nvfp4,
    /// E2M1 under one power of two per group.
    Mxfp4,
}

/// Integer weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Integers {
    pub(crate) bits: u32,
    /// Weights under one scale along out and in.
    pub(crate) block: [usize; 2],
    pub(crate) symmetric: bool,
}

/// How activations are meant to be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    Float,
    Static(ActivationFormat),
    PerToken(ActivationFormat),
    PerGroup(ActivationFormat, usize),
    Mx(ActivationFormat),
    Nvfp4,
}

impl Scheme {
    /// The scheme of a group, whose storage format is its own, or `format`, or follows from its
    /// numbers.
    pub(crate) fn of(group: &ConfigGroup, format: Option<&str>) -> Result<Self, QuantError> {
        let common = format.filter(|format| *format != "mixed-precision");
        let format = group.format.as_deref().or(common);
        Ok(Self {
            weights: match &group.weights {
                Some(args) => weights(args, group.input_activations.as_ref(), format)?,
                None => Weights::Dense,
            },
            inputs: match &group.input_activations {
                Some(args) => inputs(args)?,
                None => Inputs::Float,
            },
            quantizes_output: group.output_activations.is_some(),
        })
    }
}

fn weights(
    args: &QuantizationArgs,
    inputs: Option<&QuantizationArgs>,
    format: Option<&str>,
) -> Result<Weights, QuantError> {
    if args.dynamic != Dynamic::Flag(false) {
        return Err(error(
            "weights are dynamic, expected `dynamic: false`".to_owned(),
        ));
    }
    if let Some(order) = &args.actorder {
        let stored_in_order = *order == false || order == "weight" || order == "static";
        if !stored_in_order {
            let supported = "null, false, \"weight\", \"static\"";
            return Err(unsupported(format!("actorder {order}"), supported));
        }
    }
    let block = block(args)?;
    let integers = |widths: &[u32]| match args.kind == "int" && widths.contains(&args.num_bits) {
        true => Ok(Integers {
            bits: args.num_bits,
            block,
            symmetric: args.symmetric,
        }),
        false => Err(mismatch(args, format)),
    };
    let floats = |bits: u32, group: Option<usize>| {
        let fits = args.kind == "float" && args.num_bits == bits && args.symmetric;
        match fits && group.is_none_or(|group| block == [1, group]) {
            true => Ok(()),
            false => Err(mismatch(args, format)),
        }
    };
    match format.unwrap_or_else(|| inferred(args, inputs)) {
        "dense" => Ok(Weights::Dense),
        "pack-quantized" => Ok(Weights::Packed(integers(&[4, 8])?)),
        "int-quantized" => Ok(Weights::Bytes(integers(&[1, 2, 3, 4, 5, 6, 7, 8])?)),
        "naive-quantized" if args.kind == "int" => {
            Ok(Weights::Bytes(integers(&[1, 2, 3, 4, 5, 6, 7, 8])?))
        }
        "float-quantized" | "naive-quantized" => floats(8, None).map(|()| Weights::Fp8(block)),
        "mxfp8-quantized" => floats(8, Some(MX_GROUP)).map(|()| Weights::Mxfp8),
        "nvfp4-pack-quantized" => floats(4, Some(NVFP4_GROUP)).map(|()| Weights::Nvfp4),
        "mxfp4-pack-quantized" => floats(4, Some(MX_GROUP)).map(|()| Weights::Mxfp4),
        other => Err(unsupported(
            format!("format `{other}`"),
            "pack-quantized, int-quantized, float-quantized, naive-quantized, \
             nvfp4-pack-quantized, mxfp4-pack-quantized, mxfp8-quantized, dense",
        )),
    }
}

/// The format that the library infers from the numbers.
fn inferred(args: &QuantizationArgs, inputs: Option<&QuantizationArgs>) -> &'static str {
    let group = args.group_size.and_then(|size| usize::try_from(size).ok());
    let powers = args.scale_dtype.as_deref() == Some("torch.uint8");
    match (args.kind.as_str(), args.num_bits, group) {
        ("float", 4, Some(MX_GROUP)) => "mxfp4-pack-quantized",
        ("float", 4, _) => "nvfp4-pack-quantized",
        ("float", 8, Some(MX_GROUP)) if powers => "mxfp8-quantized",
        ("int", ..) if inputs.is_some() => "int-quantized",
        ("int", ..) => "pack-quantized",
        ("float", ..) if inputs.is_some() => "float-quantized",
        _ => "naive-quantized",
    }
}

/// Weights under one scale along out and in.
fn block(args: &QuantizationArgs) -> Result<[usize; 2], QuantError> {
    let group = args.group_size.and_then(|size| usize::try_from(size).ok());
    let strategy = match (args.strategy.as_deref(), args.group_size) {
        (Some(strategy), _) => strategy,
        (None, None) => "tensor",
        (None, Some(size)) if size > 0 => "group",
        (None, Some(_)) => "channel",
    };
    match strategy {
        "tensor" => Ok([usize::MAX, usize::MAX]),
        "channel" => Ok([1, usize::MAX]),
        "group" | "tensor_group" => match group.filter(|&size| size > 0) {
            Some(size) => Ok([1, size]),
            None => Err(error(format!(
                "strategy `{strategy}` has group_size {:?}, expected a positive number",
                args.group_size
            ))),
        },
        "block" => args
            .block_structure
            .as_ref()
            .and_then(|b| b.sizes())
            .ok_or_else(|| {
                error(format!(
                    "strategy `block` has block_structure {:?}, expected two positive numbers",
                    args.block_structure
                ))
            }),
        other => Err(unsupported(
            format!("weights by strategy `{other}`"),
            "tensor, channel, group, tensor_group, block",
        )),
    }
}

fn inputs(args: &QuantizationArgs) -> Result<Inputs, QuantError> {
    let refuse = || {
        let what = format!(
            "activations of {} bits, type `{}`, strategy {:?}, group_size {:?}, dynamic {:?}",
            args.num_bits, args.kind, args.strategy, args.group_size, args.dynamic
        );
        let supported = "symmetric 8-bit by tensor, token or group, NVFP4, MXFP4, MXFP8";
        Err(unsupported(what, supported))
    };
    let format = match (args.kind.as_str(), args.num_bits) {
        _ if !args.symmetric => return refuse(),
        ("float", 8) => ActivationFormat::F8E4M3,
        ("int", 8) => ActivationFormat::I8,
        ("float", 4) => ActivationFormat::F4E2M1,
        _ => return refuse(),
    };
    let group = args
        .group_size
        .and_then(|size| usize::try_from(size).ok())
        .filter(|&g| g > 0);
    let powers = args.scale_dtype.as_deref() == Some("torch.uint8");
    let four_bits = format == ActivationFormat::F4E2M1;
    match (&args.dynamic, args.strategy.as_deref(), group) {
        (Dynamic::Text(local), _, Some(NVFP4_GROUP)) if local == "local" && four_bits => {
            Ok(Inputs::Nvfp4)
        }
        (Dynamic::Flag(true), _, Some(MX_GROUP)) if powers || four_bits => Ok(Inputs::Mx(format)),
        (Dynamic::Flag(true), Some("group" | "tensor_group"), Some(group)) if !four_bits => {
            Ok(Inputs::PerGroup(format, group))
        }
        // One scale for a batch would depend on which tokens share it: one per token.
        (Dynamic::Flag(true), Some("token" | "tensor") | None, None) => {
            Ok(Inputs::PerToken(format))
        }
        (Dynamic::Flag(false), Some("tensor") | None, None) => Ok(Inputs::Static(format)),
        _ => refuse(),
    }
}

fn mismatch(args: &QuantizationArgs, format: Option<&str>) -> QuantError {
    unsupported(
        format!(
            "weights of {} bits, type `{}`, strategy {:?}, group_size {:?}, symmetric {} in format {}",
            args.num_bits,
            args.kind,
            args.strategy,
            args.group_size,
            args.symmetric,
            format.unwrap_or("(not named)")
        ),
        "pack-quantized int 4 or 8, int-quantized int up to 8, float-quantized float 8, \
         mxfp8 float 8 in groups of 32, nvfp4 float 4 in groups of 16, mxfp4 float 4 in groups of 32",
    )
}
