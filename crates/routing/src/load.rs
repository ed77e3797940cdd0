use crate::{RoutingError, RoutingTable};

/// How many tokens each logical expert got in one or more steps under one routing table.
///
/// The counts are *logical*: whatever placement comes later, they stay attributed to the right
/// expert. The generation says which table was in force.
///
/// ```
/// use moekit_routing::{Placement, RoutingTable, StepLoad, Topology};
///
/// let placement = Placement::from_ranks(3, &[[0, 1, 2]])?;
/// let table = RoutingTable::new(placement, Topology::new(1)?, 0, 4)?;
/// let mut load = StepLoad::new(&table);
/// // Two tokens with top-2 and one padded row.
/// load.record(&[0, 2, 2, -1, 1, 1], 2, 2)?;
/// assert_eq!((load.counts(), load.generation()), (&[1, 0, 2][..], 4));
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLoad {
    generation: u64,
    counts: Vec<u64>,
}

impl StepLoad {
    /// No tokens yet under `table`.
    pub fn new(table: &RoutingTable) -> Self {
        Self {
            generation: table.generation(),
            counts: vec![0; table.num_logical_experts()],
        }
    }

    /// Generation of the table that was in force.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Tokens per logical expert, `[E]`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts the first `num_valid_rows` rows of a batch of logical ids. Rows beyond are padding;
    /// ids outside of `0..E` (padding, shared experts) are not load.
    ///
    /// # Arguments
    ///
    /// - `topk_ids` - `[num_tokens, top_k]`, row-major.
    ///
    /// # Errors
    ///
    /// If `topk_ids` does not hold that many whole rows.
    pub fn record(
        &mut self,
        topk_ids: &[i64],
        top_k: usize,
        num_valid_rows: usize,
    ) -> Result<(), RoutingError> {
        let valid = num_valid_rows
            .checked_mul(top_k)
            .and_then(|n| topk_ids.get(..n))
            .ok_or(RoutingError::Length {
                what: "topk_ids",
                got: topk_ids.len(),
                expected: num_valid_rows.saturating_mul(top_k),
            })?;
        for &id in valid {
            if let Some(count) = usize::try_from(id)
                .ok()
                .and_then(|i| self.counts.get_mut(i))
            {
                *count += 1;
            }
        }
        Ok(())
    }

    /// Adds the counts of another rank or step under the same table.
    ///
    /// # Errors
    ///
    /// If the generations or the numbers of experts differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), RoutingError> {
        if self.generation != other.generation {
            return Err(RoutingError::Generation {
                this: self.generation,
                other: other.generation,
            });
        }
        if self.counts.len() != other.counts.len() {
            return Err(RoutingError::Length {
                what: "the load to add",
                got: other.counts.len(),
                expected: self.counts.len(),
            });
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        Ok(())
    }
}
