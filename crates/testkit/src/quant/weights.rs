//! Properties of the weights that a backend loads.

use moekit_quant::QuantBackend;

use super::{Numbers, QuantSuite, View, numbers};
use crate::Violation;

impl QuantSuite {
    /// Every local slot of every rank gets the weights of the expert that the routing table has
    /// there: in order, reversed, one expert per rank, twice on one rank, on no rank's behalf.
    ///
    /// # Errors
    ///
    /// A slot too many or too few, or one with the weights of another expert.
    pub fn fills_every_slot(&self) -> Result<(), Violation> {
        self.slots_are_filled()
            .map_err(|what| self.violation("fills_every_slot", what))
    }

    fn slots_are_filled(&self) -> Result<(), String> {
        let experts = self.num_experts();
        let expected = self.all_numbers(&*(self.make)())?;
        if expected.len() != experts {
            return Err(format!(
                "{} of {experts} local slots are filled",
                expected.len()
            ));
        }
        alike(&expected)?;
        let all: Vec<usize> = (0..experts).collect();
        let reversed: Vec<usize> = all.iter().rev().copied().collect();
        let single = all.iter().map(|&e| vec![e]).collect();
        for ranks in [
            vec![reversed],
            single,
            vec![all.clone(), vec![0, 0]],
            vec![vec![], all],
        ] {
            for view in View::of_ranks(experts, &ranks)? {
                let local = view.experts();
                let got = numbers(self.sample.load(&*(self.make)(), &view))?;
                let want = local.iter().map(|&e| &expected[e]);
                if got.len() != local.len() || !got.iter().eq(want) {
                    return Err(format!(
                        "a rank with the experts {local:?} gets {} slots, filled with {:?}",
                        got.len(),
                        got.iter()
                            .map(|numbers| expected.iter().position(|e| e == numbers))
                            .collect::<Vec<_>>()
                    ));
                }
            }
        }
        Ok(())
    }

    /// A rank reads no more than the experts that it holds: one with a single expert at most twice
    /// its share of the bytes, one without experts nothing.
    ///
    /// # Errors
    ///
    /// A rank that reads more.
    pub fn reads_local_experts_only(&self) -> Result<(), Violation> {
        self.reads_are_local()
            .map_err(|what| self.violation("reads_local_experts_only", what))
    }

    fn reads_are_local(&self) -> Result<(), String> {
        let experts = self.num_experts();
        let all = self.load_all()?.bytes_read();
        let mut ranks: Vec<Vec<usize>> = (0..experts).map(|e| vec![e]).collect();
        ranks.push(Vec::new());
        for view in View::of_ranks(experts, &ranks)? {
            let local = view.experts();
            let read = self.sample.load(&*(self.make)(), &view).bytes_read();
            let limit = 2 * local.len() * all / experts;
            // Shared experts are every rank's.
            if read > limit && self.sample.layer.shared.is_none() {
                return Err(format!(
                    "a rank with the experts {local:?} of {experts} reads {read} of {all} bytes"
                ));
            }
        }
        Ok(())
    }

    /// The same tensors make the same weights: loaded by one backend twice, and by another of the
    /// same configuration.
    ///
    /// # Errors
    ///
    /// If they do not.
    pub fn is_deterministic(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "is_deterministic";
        let made = (self.make)();
        let load = |backend: &dyn QuantBackend| {
            self.all_numbers(backend)
                .map_err(|what| self.violation(PROPERTY, what))
        };
        let first = load(&*made)?;
        if load(&*made)? == first && load(&*(self.make)())? == first {
            Ok(())
        } else {
            Err(self.violation(PROPERTY, "two loads of one layer differ"))
        }
    }
}

/// A sample whose experts are alike could not show which of them a slot holds.
fn alike(experts: &[Numbers]) -> Result<(), String> {
    if experts.len() < 4 {
        return Err(format!(
            "the sample has {} experts, it needs at least 4",
            experts.len()
        ));
    }
    for (a, expert) in experts.iter().enumerate() {
        if let Some(b) = experts.iter().take(a).position(|other| other == expert) {
            return Err(format!(
                "the sample's experts {b} and {a} have the same weights"
            ));
        }
    }
    Ok(())
}
