//! Indices that must not be mixed up: each is a number, none converts into another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! index_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(usize);

        impl $name {
            /// Wraps an index.
            pub const fn new(index: usize) -> Self {
                Self(index)
            }

            /// Reads an id as kernels carry it; a negative id names nothing and is `None`.
            pub fn from_raw(id: i64) -> Option<Self> {
                usize::try_from(id).ok().map(Self)
            }

            /// The index as a plain number.
            pub const fn index(self) -> usize {
                self.0
            }

            /// The id as kernels carry it.
            pub const fn raw(self) -> i64 {
                self.0 as i64
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

index_type! {
    /// A row of the gate: an expert as the model knows it. Fused shared experts follow the routed
    /// ones, so with `E` routed experts the first shared expert is `LogicalExpert(E)`.
    LogicalExpert
}
index_type! {
    /// A slot of the EP group: one copy of an expert's weights on one rank. Slots are numbered
    /// rank by rank. With `P` routed slots, `PhysicalExpert(P + s)` is the copy of fused shared
    /// expert `s` on whichever rank looks it up.
    PhysicalExpert
}
index_type! {
    /// A slot of one rank, counted from the rank's first; fused shared experts come last.
    LocalExpert
}
index_type! {
    /// A member of the EP group.
    Rank
}
