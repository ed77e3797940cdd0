use std::sync::Arc;

use moekit_placement::{Placement, RoutingError, Topology};
use moekit_quant::{
    CountingSource, ExpertLinear, ExpertMlp, ExpertWeights, MemorySource, MoeLayerSpec,
    QuantBackend, QuantError, TensorDtype, TensorSource,
};
use moekit_routing::{ExpertRouting, Rank, RoutingTable};

/// A small layer in the format under test: at least 4 experts, each with weights of its own.
#[derive(Clone, Debug)]
pub struct QuantSample {
    pub(super) layer: MoeLayerSpec,
    pub(super) tensors: MemorySource,
    optional: Vec<String>,
}

impl QuantSample {
    /// A layer and the tensors of its experts.
    pub fn new(layer: MoeLayerSpec, tensors: MemorySource) -> Self {
        Self {
            layer,
            tensors,
            optional: Vec::new(),
        }
    }

    /// The format does without tensors whose names end like this.
    #[must_use]
    pub fn with_optional(mut self, suffix: impl Into<String>) -> Self {
        self.optional.push(suffix.into());
        self
    }

    pub(super) fn is_optional(&self, tensor: &str) -> bool {
        self.optional
            .iter()
            .any(|suffix| tensor.ends_with(suffix.as_str()))
    }

    /// The sample with one tensor replaced.
    pub(super) fn with_tensor(&self, name: &str, tensor: Stored) -> Self {
        let mut changed = self.clone();
        changed
            .tensors
            .insert(name, tensor.dtype, tensor.shape, tensor.bytes);
        changed
    }

    pub(super) fn without_tensor(&self, name: &str) -> Self {
        let mut changed = self.clone();
        changed.tensors.remove(name);
        changed
    }

    pub(super) fn tensor(&self, name: &str) -> Option<Stored> {
        let info = self.tensors.info(name)?;
        let bytes = self.tensors.read(name, 0..info.num_bytes()?).ok()?;
        Some(Stored {
            dtype: info.dtype,
            shape: info.shape,
            bytes: bytes.to_vec(),
        })
    }

    /// Loads what `view` holds; also the bytes read of each tensor.
    pub(super) fn load(&self, backend: &dyn QuantBackend, view: &View) -> Loaded {
        let tensors = CountingSource::new(&self.tensors);
        let weights = backend.load_experts(&self.layer, &tensors, view);
        let read = tensors
            .bytes_read()
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        Loaded { weights, read }
    }
}

/// A tensor as the sample holds it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) dtype: TensorDtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Loaded {
    pub(super) weights: Result<ExpertWeights, QuantError>,
    /// Name and distinct bytes of the tensors that were read.
    pub(super) read: Vec<(String, usize)>,
}

impl Loaded {
    pub(super) fn bytes_read(&self) -> usize {
        self.read.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// One rank's view of a placement.
#[derive(Clone, Debug)]
pub(super) struct View {
    rank: Rank,
    table: Arc<RoutingTable>,
}

impl ExpertRouting for View {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.table)
    }
}

impl View {
    /// The views of all ranks, each of which holds the experts named.
    pub(super) fn of_ranks(experts: usize, ranks: &[Vec<usize>]) -> Result<Vec<Self>, String> {
        let table = table(experts, ranks).map_err(|error| error.to_string())?;
        let table = Arc::new(table);
        let view = |rank| Self {
            rank: Rank::new(rank),
            table: Arc::clone(&table),
        };
        Ok((0..ranks.len()).map(view).collect())
    }

    /// The view of one rank that holds all experts in order.
    pub(super) fn of_all(experts: usize) -> Result<Self, String> {
        let all = table(experts, &[(0..experts).collect()]).map_err(|error| error.to_string())?;
        Ok(Self {
            rank: Rank::new(0),
            table: Arc::new(all),
        })
    }

    /// The same table, seen from another rank.
    pub(super) fn seen_by(&self, rank: usize) -> Self {
        Self {
            rank: Rank::new(rank),
            table: Arc::clone(&self.table),
        }
    }

    /// The experts of this rank, slot by slot.
    pub(super) fn experts(&self) -> Vec<usize> {
        self.local_experts().iter().map(|e| e.index()).collect()
    }
}

fn table(experts: usize, ranks: &[Vec<usize>]) -> Result<RoutingTable, RoutingError> {
    let placement = Placement::from_ranks(experts, ranks)?;
    RoutingTable::new(placement, Topology::new(ranks.len())?, 0, 0)
}

/// What an expert computes with: shapes, weights and biases, bit by bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers(Vec<([usize; 2], Vec<u32>)>);

impl Numbers {
    pub(super) fn of(expert: &ExpertMlp) -> Result<Self, QuantError> {
        expert
            .linears()
            .map(linear_numbers)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn linear_numbers(linear: &ExpertLinear) -> Result<([usize; 2], Vec<u32>), QuantError> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let mut bits = Vec::new();
    let mut row = vec![0.0; cols];
    for r in 0..rows {
        linear.weight.dequantize_row(r, &mut row)?;
        bits.extend(row.iter().map(|value| value.to_bits()));
    }
    bits.extend(linear.bias.iter().flatten().map(|value| value.to_bits()));
    Ok(([rows, cols], bits))
}
