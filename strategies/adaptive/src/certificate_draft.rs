//! What no plan and no split can beat.
//!
//! [`layer_bound`] bounds the largest rank load of one layer from below for every placement. For a
//! given placement and the counts of one step, [`optimum`] finds the smallest largest rank load that
//! any split of the tokens over the replicas can reach, with the ranks that prove it:
//! `max over sets A of ranks: (load of the experts that live inside A only) / |A|`,
//! the max-flow min-cut theorem on the network experts to ranks (the parameter is found by Dinkelbach's
//! method, each flow by Dinic's).

/// What is wrong with the input of a bound.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// An expert has tokens but no replica.
    #[error("expert {expert} has {tokens} tokens but no replica; every expert needs at least one")]
    Homeless {
        /// The expert.
        expert: usize,
        /// Its tokens.
        tokens: u64,
    },
    /// A replica sits on a rank that does not exist.
    #[error("expert {expert} has a replica on rank {rank}, but there are {ranks} ranks")]
    NoSuchRank {
        /// The expert.
        expert: usize,
        /// The rank named.
        rank: usize,
        /// Ranks there are.
        ranks: usize,
    },
    /// The lists differ in length.
    #[error("{counts} token counts for {experts} experts; give one count per expert")]
    Shape {
        /// Token counts given.
        counts: usize,
        /// Experts placed.
        experts: usize,
    },
    /// The tokens of the step times the ranks pass what 64 bits hold.
    #[error("{tokens} tokens on {ranks} ranks are too many to count exactly")]
    TooMany {
        /// Tokens of the step.
        tokens: u128,
        /// Ranks there are.
        ranks: usize,
    },
    /// A load is negative, infinite or not a number.
    #[error("expert {expert} has load {load}; a load is finite and at least 0")]
    BadLoad {
        /// The expert.
        expert: usize,
        /// Its load.
        load: f64,
    },
    /// There are fewer slots than experts.
    #[error("{slots} slots cannot hold {experts} experts; give at least one slot per expert")]
    TooFewSlots {
        /// Slots on all ranks.
        slots: usize,
        /// Experts to place.
        experts: usize,
    },
}

/// The smallest largest rank load of a step on a placement, over all splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Optimum {
    /// Tokens of the experts that live only on [`ranks`](Self::ranks).
    pub tokens: u64,
    /// The ranks that share them: the proof. In rising order.
    pub ranks: Vec<usize>,
    /// A split in whole tokens that reaches [`largest`](Self::largest): for each expert, one
    /// number per entry of its list of replicas.
    pub split: Vec<Vec<u64>>,
}

impl Optimum {
    /// The optimum over fractional splits: tokens of the proof over its ranks.
    pub fn level(&self) -> f64 {
        self.tokens as f64 / self.ranks.len().max(1) as f64
    }

    /// The optimum over splits in whole tokens: the level rounded up.
    pub fn largest(&self) -> u64 {
        self.tokens.div_ceil(self.ranks.len().max(1) as u64)
    }
}

/// The smallest largest rank load of one step over all splits of each expert's tokens.
///
/// `replicas` lists for each expert the ranks that hold it (a rank may be named twice), `counts` its
/// tokens; ranks are numbered below `ranks`, and a rank that no expert names carries nothing but counts
/// as able to carry, so name only live ranks.
///
/// # Errors
///
/// If the lists do not fit together or the numbers pass 64 bits.
pub fn optimum(replicas: &[Vec<usize>], counts: &[u64], ranks: usize) -> Result<Optimum, CertificateError> {
    check(replicas, counts, ranks)?;
    let mut network = Network::new(replicas, counts, ranks);
    let all: u64 = counts.iter().sum();
    let (mut tokens, mut proof) = (all, (0..ranks).collect::<Vec<_>>());
    for rank in 0..ranks {
        if network.fixed[rank] * proof.len() as u64 > tokens {
            (tokens, proof) = (network.fixed[rank], vec![rank]);
        }
    }
    while let Some(set) = network.violated(tokens, proof.len() as u64) {
        tokens = network.confined(&set);
        proof = set;
    }
    let level = tokens.div_ceil(proof.len().max(1) as u64);
    network.violated(level, 1);
    Ok(Optimum { tokens, ranks: proof, split: network.split(replicas, counts) })
}

fn check(replicas: &[Vec<usize>], counts: &[u64], ranks: usize) -> Result<(), CertificateError> {
    if replicas.len() != counts.len() {
        return Err(CertificateError::Shape { counts: counts.len(), experts: replicas.len() });
    }
    let tokens: u128 = counts.iter().map(|&c| u128::from(c)).sum();
    if tokens.saturating_mul(ranks as u128 + 1) > u128::from(u64::MAX / 4) {
        return Err(CertificateError::TooMany { tokens, ranks });
    }
    for (expert, list) in replicas.iter().enumerate() {
        if list.is_empty() && counts[expert] > 0 {
            return Err(CertificateError::Homeless { expert, tokens: counts[expert] });
        }
        if let Some(&rank) = list.iter().find(|&&r| r >= ranks) {
            return Err(CertificateError::NoSuchRank { expert, rank, ranks });
        }
    }
    Ok(())
}

/// Experts on several ranks on the left, ranks on the right.
struct Network {
    /// Tokens of each rank that can go nowhere else.
    fixed: Vec<u64>,
    /// The experts on several ranks.
    experts: Vec<usize>,
    /// Their tokens.
    tokens: Vec<u64>,
    /// The ranks of each, without repetition.
    ranks_of: Vec<Vec<usize>>,
    /// For each rank, the experts (as positions in `experts`) on it and where it stands in their list.
    experts_on: Vec<Vec<(usize, usize)>>,
    /// Flow from each expert to each of its ranks.
    flow: Vec<Vec<u64>>,
    /// Flow that a rank and an expert could still take.
    rank_room: Vec<u64>,
    left: Vec<u64>,
    /// Distances of the last search, experts first.
    depth: Vec<u32>,
}

impl Network {
    fn new(replicas: &[Vec<usize>], counts: &[u64], ranks: usize) -> Self {
        let mut network = Self {
            fixed: vec![0; ranks],
            experts: Vec::new(),
            tokens: Vec::new(),
            ranks_of: Vec::new(),
            experts_on: vec![Vec::new(); ranks],
            flow: Vec::new(),
            rank_room: Vec::new(),
            left: Vec::new(),
            depth: Vec::new(),
        };
        for (expert, list) in replicas.iter().enumerate() {
            let mut list = list.clone();
            list.sort_unstable();
            list.dedup();
            match list[..] {
                [] => {}
                [only] => network.fixed[only] += counts[expert],
                _ => {
                    for (at, &rank) in list.iter().enumerate() {
                        network.experts_on[rank].push((network.experts.len(), at));
                    }
                    network.experts.push(expert);
                    network.tokens.push(counts[expert]);
                    network.flow.push(vec![0; list.len()]);
                    network.ranks_of.push(list);
                }
            }
        }
        network
    }

    /// A set of ranks whose confined tokens exceed `tokens / ranks` for each of its ranks, if there is one.
    fn violated(&mut self, tokens: u64, ranks: u64) -> Option<Vec<usize>> {
        self.left = self.tokens.iter().map(|t| t * ranks).collect();
        self.rank_room = self.fixed.iter().map(|f| tokens.saturating_sub(f * ranks)).collect();
        self.flow.iter_mut().for_each(|f| f.fill(0));
        while self.levels() {
            for expert in 0..self.experts.len() {
                while self.left[expert] > 0 {
                    let pushed = self.push(expert, self.left[expert]);
                    if pushed == 0 {
                        break;
                    }
                    self.left[expert] -= pushed;
                }
            }
        }
        if self.left.iter().all(|&l| l == 0) {
            return None;
        }
        let experts = self.experts.len();
        let reached = |r: &usize| self.depth[experts + r] != u32::MAX;
        Some((0..self.fixed.len()).filter(reached).collect())
    }

    /// Breadth-first distances from the experts with tokens left; whether a rank with room is reached.
    fn levels(&mut self) -> bool {
        let experts = self.experts.len();
        self.depth = vec![u32::MAX; experts + self.fixed.len()];
        let mut queue: Vec<usize> = (0..experts).filter(|&e| self.left[e] > 0).collect();
        queue.iter().for_each(|&e| self.depth[e] = 0);
        let (mut head, mut found) = (0, false);
        while let Some(&node) = queue.get(head) {
            head += 1;
            let next = self.depth[node] + 1;
            if node < experts {
                for &rank in &self.ranks_of[node] {
                    if self.depth[experts + rank] == u32::MAX {
                        self.depth[experts + rank] = next;
                        found |= self.rank_room[rank] > 0;
                        queue.push(experts + rank);
                    }
                }
            } else {
                for &(expert, at) in &self.experts_on[node - experts] {
                    if self.flow[expert][at] > 0 && self.depth[expert] == u32::MAX {
                        self.depth[expert] = next;
                        queue.push(expert);
                    }
                }
            }
        }
        found
    }

    /// Sends up to `amount` from an expert along rising distances.
    fn push(&mut self, expert: usize, amount: u64) -> u64 {
        let experts = self.experts.len();
        for at in 0..self.ranks_of[expert].len() {
            let rank = self.ranks_of[expert][at];
            let depth = self.depth[experts + rank];
            if depth != self.depth[expert] + 1 {
                continue;
            }
            let direct = amount.min(self.rank_room[rank]);
            if direct > 0 {
                self.rank_room[rank] -= direct;
                self.flow[expert][at] += direct;
                return direct;
            }
            for i in 0..self.experts_on[rank].len() {
                let (other, back) = self.experts_on[rank][i];
                let taken = amount.min(self.flow[other][back]);
                if taken == 0 || self.depth[other] != depth + 1 {
                    continue;
                }
                let pushed = self.push(other, taken);
                if pushed > 0 {
                    self.flow[other][back] -= pushed;
                    self.flow[expert][at] += pushed;
                    return pushed;
                }
            }
            self.depth[experts + rank] = u32::MAX - 1;
        }
        self.depth[expert] = u32::MAX - 1;
        0
    }

    /// Tokens of the experts that live only on these ranks.
    fn confined(&self, set: &[usize]) -> u64 {
        let inside = |list: &Vec<usize>| list.iter().all(|r| set.binary_search(r).is_ok());
        let fixed: u64 = set.iter().map(|&r| self.fixed[r]).sum();
        let shared = self.ranks_of.iter().zip(&self.tokens).filter(|(list, _)| inside(list));
        fixed + shared.map(|(_, &t)| t).sum::<u64>()
    }

    /// The flow in the order of the lists given; a rank named twice gets all at its first mention.
    fn split(&self, replicas: &[Vec<usize>], counts: &[u64]) -> Vec<Vec<u64>> {
        let mut split: Vec<Vec<u64>> = replicas.iter().map(|list| vec![0; list.len()]).collect();
        for (expert, shares) in split.iter_mut().enumerate() {
            if let (Some(first), [only, ..]) = (shares.first_mut(), &replicas[expert][..])
                && replicas[expert].iter().all(|r| r == only)
            {
                *first = counts[expert];
            }
        }
        for (i, &expert) in self.experts.iter().enumerate() {
            for (rank, &flow) in self.ranks_of[i].iter().zip(&self.flow[i]) {
                if let Some(at) = replicas[expert].iter().position(|r| r == rank) {
                    split[expert][at] = flow;
                }
            }
        }
        split
    }
}
