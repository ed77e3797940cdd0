use super::shares::{Replica, Spread};

/// Sweeps over all experts that move single tokens; each makes some rank's load smaller or is the
/// last.
const MAX_SWEEPS: usize = 8;

/// Whole tokens out of fractions of them.
#[derive(Clone, Debug)]
pub(super) struct Rounding {
    /// Tokens of each rank, as far as they are rounded, `[R]`.
    loads: Vec<f64>,
    /// As long as the largest number of replicas.
    remainders: Vec<f64>,
}

impl Rounding {
    pub(super) fn new(num_ranks: usize, most_replicas: usize) -> Self {
        Self {
            loads: vec![0.0; num_ranks],
            remainders: vec![0.0; most_replicas],
        }
    }

    /// Begins with nothing rounded.
    pub(super) fn start(&mut self, loads: &[f64]) {
        self.loads.copy_from_slice(loads);
    }

    /// Rounds an expert: down everywhere, then one more token each where the remainder is largest
    /// beyond what the errors of earlier experts have added to the rank.
    pub(super) fn expert(
        &mut self,
        count: u64,
        replicas: &[Replica],
        tokens: &[f64],
        split: &mut [u64],
    ) {
        let mut left = count;
        for ((replica, &tokens), remainder) in replicas.iter().zip(tokens).zip(&mut self.remainders)
        {
            let whole = (tokens as u64).min(left);
            left -= whole;
            split[replica.slot as usize] = whole;
            let load = &mut self.loads[replica.rank as usize];
            *load -= tokens - whole as f64;
            // Where there is no fraction, none is rounded up while another has one.
            *remainder = if tokens > whole as f64 {
                -*load
            } else {
                f64::MIN
            };
        }
        let remainders = &mut self.remainders[..replicas.len()];
        while left > 0 {
            let at = first_max(remainders);
            // More than one each only if the fractions lost a token to the precision of `f64`.
            let more = if remainders[at] == f64::MIN { left } else { 1 };
            remainders[at] = f64::MIN;
            split[replicas[at].slot as usize] += more;
            self.loads[replicas[at].rank as usize] += more as f64;
            left -= more;
        }
    }

    /// Moves tokens between an expert's replicas whose ranks differ by two or more.
    pub(super) fn level(&mut self, spread: &[Spread], replicas: &[Replica], split: &mut [u64]) {
        for _ in 0..MAX_SWEEPS {
            let mut moved = false;
            for spread in spread {
                moved |= self.level_expert(&replicas[spread.range()], split);
            }
            if !moved {
                return;
            }
        }
    }

    fn level_expert(&mut self, replicas: &[Replica], split: &mut [u64]) -> bool {
        let load = |replica: &Replica| self.loads[replica.rank as usize];
        let (mut from, mut to) = (None::<Replica>, replicas[0]);
        for replica in replicas {
            if load(replica) < load(&to) {
                to = *replica;
            }
            if split[replica.slot as usize] > 0
                && from.is_none_or(|from| load(replica) > load(&from))
            {
                from = Some(*replica);
            }
        }
        let Some(from) = from else {
            return false;
        };
        let half = ((load(&from) - load(&to) + 0.5) * 0.5).max(0.0) as u64;
        let moved = half.min(split[from.slot as usize]);
        split[from.slot as usize] -= moved;
        split[to.slot as usize] += moved;
        self.loads[from.rank as usize] -= moved as f64;
        self.loads[to.rank as usize] += moved as f64;
        moved > 0
    }
}

/// Index of the largest value, the first of equal ones.
fn first_max(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}
