//! What a backend must not accept.

use std::panic::{AssertUnwindSafe, catch_unwind};

use moekit_quant::{QuantError, TensorDtype};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::sample::Stored;
use super::{QuantSample, QuantSuite, View};
use crate::{Violation, runner};

impl QuantSuite {
    /// Without a tensor that it reads the backend refuses to load, and names the tensor; those that
    /// the sample calls [optional](QuantSample::with_optional) may be missing.
    ///
    /// # Errors
    ///
    /// A tensor that nobody misses, or an error that does not name it.
    pub fn refuses_missing_tensors(&self) -> Result<(), Violation> {
        self.refuses("refuses_missing_tensors", |name, _| {
            (!self.sample.is_optional(name)).then(|| self.sample.without_tensor(name))
        })
    }

    /// A tensor whose last size is one more is refused by name.
    ///
    /// # Errors
    ///
    /// A shape that is accepted, or an error that does not name the tensor.
    pub fn refuses_other_shapes(&self) -> Result<(), Violation> {
        self.refuses("refuses_other_shapes", |name, mut tensor| {
            match tensor.shape.last_mut() {
                Some(size) => *size += 1,
                None => tensor.shape.push(2),
            }
            // As many bytes as the new shape has, so that only the shape is wrong.
            let elements: usize = tensor.shape.iter().product();
            let bytes = (elements * tensor.dtype.bits()).div_ceil(8);
            tensor.bytes.resize(bytes, 0);
            Some(self.sample.with_tensor(name, tensor))
        })
    }

    /// A tensor of another type with elements of the same size is refused by name.
    ///
    /// # Errors
    ///
    /// A type that is accepted, or an error that does not name the tensor.
    pub fn refuses_other_types(&self) -> Result<(), Violation> {
        self.refuses("refuses_other_types", |name, mut tensor| {
            tensor.dtype = other_type(tensor.dtype);
            Some(self.sample.with_tensor(name, tensor))
        })
    }

    /// A tensor with fewer bytes than its shape has is refused by name.
    ///
    /// # Errors
    ///
    /// A truncated tensor that is accepted, or an error that does not name it.
    pub fn refuses_truncated_tensors(&self) -> Result<(), Violation> {
        self.refuses("refuses_truncated_tensors", |name, mut tensor| {
            tensor.bytes.truncate(tensor.bytes.len() / 2);
            Some(self.sample.with_tensor(name, tensor))
        })
    }

    /// Changes every tensor that the backend reads, one at a time; each change must be refused.
    fn refuses(
        &self,
        property: &'static str,
        change: impl Fn(&str, Stored) -> Option<QuantSample>,
    ) -> Result<(), Violation> {
        self.refused(&change)
            .map_err(|what| self.violation(property, what))
    }

    fn refused(&self, change: &dyn Fn(&str, Stored) -> Option<QuantSample>) -> Result<(), String> {
        let view = self.all_on_one_rank()?;
        for name in self.names_read()? {
            let tensor = self.sample.tensor(&name);
            let Some(changed) = tensor.and_then(|tensor| change(&name, tensor)) else {
                continue;
            };
            match changed.load(&*(self.make)(), &view).weights {
                Ok(_) => return Err(format!("nobody minds the change of `{name}`")),
                Err(error) if !error.to_string().contains(&name) => {
                    return Err(format!(
                        "the error about `{name}` does not name it: {error}"
                    ));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The tensors that a load of all experts reads.
    fn names_read(&self) -> Result<Vec<String>, String> {
        let names: Vec<_> = self
            .load_all()?
            .read
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        if names.is_empty() {
            return Err("nothing of the sample is read".to_owned());
        }
        Ok(names)
    }

    /// A routing table with other experts than the layer, and a rank that the table lacks, are
    /// refused.
    ///
    /// # Errors
    ///
    /// If one of them is accepted.
    pub fn refuses_foreign_routing(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "refuses_foreign_routing";
        let experts = self.num_experts();
        let views = || -> Result<_, String> {
            Ok([
                (
                    "an expert more than the layer has",
                    View::of_all(experts + 1)?,
                ),
                ("rank 7 of 1", self.all_on_one_rank()?.seen_by(7)),
            ])
        };
        for (what, view) in views().map_err(|what| self.violation(PROPERTY, what))? {
            if self.sample.load(&*(self.make)(), &view).weights.is_ok() {
                return Err(self.violation(PROPERTY, format!("{what} is accepted")));
            }
        }
        Ok(())
    }

    /// Whatever a tensor holds, the backend answers, with weights or an error.
    ///
    /// # Errors
    ///
    /// A panic.
    pub fn never_panics(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "never_panics";
        let violation = |what: String| self.violation(PROPERTY, what);
        let names = self.names_read().map_err(violation)?;
        let view = self.all_on_one_rank().map_err(violation)?;
        runner::check(&any_damage(names), |(name, damage)| {
            let Some(tensor) = self.sample.tensor(name) else {
                return Ok(());
            };
            let damaged = self
                .sample
                .with_tensor(name, damage.clone().done_to(tensor));
            let load = || -> Result<(), QuantError> {
                damaged.load(&*(self.make)(), &view).weights.map(drop)
            };
            match catch_unwind(AssertUnwindSafe(load)) {
                Ok(_) => Ok(()),
                Err(panic) => Err(format!(
                    "the panic `{}`; `{name}` was damaged by {damage:?}",
                    runner::message(&*panic)
                )),
            }
        })
        .map_err(violation)
    }
}

/// A type of the same size that no format takes for the other.
fn other_type(dtype: TensorDtype) -> TensorDtype {
    match dtype.bits() {
        16 if dtype == TensorDtype::U16 => TensorDtype::F16,
        16 => TensorDtype::U16,
        32 if dtype == TensorDtype::F32 => TensorDtype::U32,
        32 => TensorDtype::F32,
        64 if dtype == TensorDtype::C64 => TensorDtype::F64,
        64 => TensorDtype::C64,
        _ => TensorDtype::Bool,
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Dtype(TensorDtype),
    Shape(Vec<usize>),
    Length(usize),
    Fill(u8),
    Bytes(Vec<u8>),
}

impl Damage {
    fn done_to(self, mut tensor: Stored) -> Stored {
        match self {
            Self::Dtype(dtype) => tensor.dtype = dtype,
            Self::Shape(shape) => tensor.shape = shape,
            Self::Length(length) => tensor.bytes.truncate(length),
            Self::Fill(byte) => tensor.bytes.fill(byte),
            Self::Bytes(bytes) => {
                for (old, new) in tensor.bytes.iter_mut().zip(bytes) {
                    *old = new;
                }
            }
        }
        tensor
    }
}

fn any_damage(names: Vec<String>) -> impl Strategy<Value = (String, Damage)> {
    let dtypes = vec![
        TensorDtype::Bool,
        TensorDtype::F4,
        TensorDtype::U8,
        TensorDtype::I8,
        TensorDtype::F8E4M3,
        TensorDtype::F8E8M0,
        TensorDtype::F16,
        TensorDtype::BF16,
        TensorDtype::I32,
        TensorDtype::F32,
        TensorDtype::I64,
    ];
    let size = prop_oneof![0usize..40, Just(usize::MAX)];
    let damage = prop_oneof![
        select(dtypes).prop_map(Damage::Dtype),
        vec(size, 0..4).prop_map(Damage::Shape),
        (0usize..64).prop_map(Damage::Length),
        select(vec![0u8, 0x7f, 0x80, 0xff]).prop_map(Damage::Fill),
        vec(any::<u8>(), 1..64).prop_map(Damage::Bytes),
    ];
    let name = any::<Index>().prop_map(move |index| index.get(&names).clone());
    (name, damage)
}
