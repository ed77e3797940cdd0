use moekit_routing::{PhysicalExpert, Rank};

use super::RoutedTokens;
use crate::FusedMoeError;

/// The tokens that go to one rank.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RankTokens {
    /// Indices of the tokens, ascending, each at most once: `[num_rows]`.
    pub tokens: Vec<usize>,
    /// The destination's local ids, `[num_rows, top_k]`; `-1` where a slot is not on that rank.
    pub local_ids: Vec<i64>,
    /// `[num_rows, top_k]`; 0 where a slot is not on that rank.
    pub weights: Vec<f32>,
}

impl RoutedTokens<'_> {
    /// What goes to each rank: every token once to each rank that owns one of its slots. The slots
    /// of fused shared experts, which every rank owns, stay on the token's own rank.
    ///
    /// ```
    /// use moekit_fused_moe::RoutedTokens;
    /// use moekit_kernels::Rows;
    /// use moekit_routing::{Placement, Rank, RoutingTable, Topology};
    ///
    /// let placement = Placement::from_ranks(3, &[vec![0, 1], vec![2]])?;
    /// let table = RoutingTable::new(placement, Topology::new(2)?, 0, 0)?;
    /// let hidden = Rows::F32(&[0.5, 1.5]);
    /// // Token 0 has both slots on rank 0, token 1 one on each.
    /// let tokens = RoutedTokens::new(hidden, 1, &[1, 0, 2, 1], &[0.9, 0.1, 0.6, 0.4], 2, &table)?;
    /// let plan = tokens.per_rank(Rank::new(0))?;
    /// assert_eq!(plan[0].tokens, [0, 1]);
    /// assert_eq!(plan[0].local_ids, [1, 0, -1, 1]);
    /// assert_eq!(plan[1].tokens, [1]);
    /// assert_eq!(plan[1].local_ids, [0, -1]);
    /// assert_eq!(plan[1].weights, [0.6, 0.0]);
    /// # Ok::<(), moekit_fused_moe::FusedMoeError>(())
    /// ```
    ///
    /// # Arguments
    ///
    /// - `own` - the rank whose tokens these are.
    ///
    /// # Errors
    ///
    /// If a physical id is not a slot of the table.
    pub fn per_rank(&self, own: Rank) -> Result<Vec<RankTokens>, FusedMoeError> {
        let mut ranks = vec![RankTokens::default(); self.table.num_ranks()];
        if self.top_k == 0 {
            return Ok(ranks);
        }
        let rows = self
            .physical_ids
            .chunks_exact(self.top_k)
            .zip(self.weights.chunks_exact(self.top_k));
        for (token, (ids, weights)) in rows.enumerate() {
            for (slot, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
                let Some(physical) = PhysicalExpert::from_raw(id) else {
                    continue;
                };
                let owner = self.table.owner(physical).unwrap_or(own);
                let local = self.table.local_index(owner, physical);
                let (Some(local), Some(rank)) = (local, ranks.get_mut(owner.index())) else {
                    return Err(FusedMoeError::dispatch(format!(
                        "physical id {id} of token {token} is not a slot: the routing table has {} and {} fused shared experts",
                        self.table.num_physical_experts(),
                        self.table.num_shared_experts()
                    )));
                };
                rank.put(token, self.top_k, slot, local.raw(), weight);
            }
        }
        Ok(ranks)
    }
}

impl RankTokens {
    fn put(&mut self, token: usize, top_k: usize, slot: usize, local_id: i64, weight: f32) {
        if self.tokens.last() != Some(&token) {
            self.tokens.push(token);
            self.local_ids.resize(self.tokens.len() * top_k, -1);
            self.weights.resize(self.tokens.len() * top_k, 0.0);
        }
        let at = (self.tokens.len() - 1) * top_k + slot;
        self.local_ids[at] = local_id;
        self.weights[at] = weight;
    }
}
