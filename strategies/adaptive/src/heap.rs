//! A heap of ranks by cost, the lightest on top; ties go to the lowest rank.

/// Ranks that can still take a replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct RankHeap {
    /// The bits of the cost, which order as a cost that is not negative does, above the rank.
    keys: Vec<u128>,
}

fn key(cost: f64, rank: u32) -> u128 {
    u128::from(cost.to_bits()) << 32 | u128::from(rank)
}

impl RankHeap {
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
    }

    /// The lightest rank.
    pub(crate) fn top(&self) -> Option<u32> {
        self.keys.first().map(|&k| k as u32)
    }

    pub(crate) fn push(&mut self, cost: f64, rank: u32) {
        let entry = key(cost, rank);
        self.keys.push(entry);
        let mut at = self.keys.len() - 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if entry > self.keys[parent] {
                break;
            }
            self.keys[at] = self.keys[parent];
            at = parent;
        }
        self.keys[at] = entry;
    }

    pub(crate) fn pop(&mut self) -> Option<u32> {
        let top = self.top()?;
        let last = self.keys.pop()?;
        if !self.keys.is_empty() {
            self.sift(last);
        }
        Some(top)
    }

    /// Puts another entry in the place of the top.
    pub(crate) fn replace_top(&mut self, cost: f64, rank: u32) {
        self.sift(key(cost, rank));
    }

    fn sift(&mut self, entry: u128) {
        let keys = &mut self.keys[..];
        let mut at = 0;
        while let [left, right, ..] = keys.get(2 * at + 1..).unwrap_or_default() {
            let (child, least) = if right < left { (2 * at + 2, *right) } else { (2 * at + 1, *left) };
            if entry <= least {
                break;
            }
            keys[at] = least;
            at = child;
        }
        if let [only] = keys.get(2 * at + 1..).unwrap_or_default()
            && *only < entry
        {
            keys[at] = *only;
            at = 2 * at + 1;
        }
        keys[at] = entry;
    }
}
