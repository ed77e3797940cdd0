use thiserror::Error;

/// What can be wrong with the input of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A buffer has another length than its shape says.
    #[error("{what} has {got} elements, expected {expected} ({shape})")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that its shape needs.
        expected: usize,
        /// The shape in words.
        shape: &'static str,
    },
    /// A buffer does not consist of whole rows.
    #[error("{what} has {got} elements, which is not a multiple of {width} ({shape})")]
    PartialRow {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        got: usize,
        /// Elements of a row.
        width: usize,
        /// The shape in words.
        shape: &'static str,
    },
    /// An id that names no expert of this rank.
    #[error(
        "local id {id} of row {row}, slot {slot} names no expert: there are {num_local}, and -1 is an empty slot"
    )]
    LocalId {
        /// The id given.
        id: i64,
        /// Row of the batch.
        row: usize,
        /// Slot of the row.
        slot: usize,
        /// Local experts.
        num_local: usize,
    },
    /// Sizes whose product exceeds the address space.
    #[error("a buffer of {what} ({rows} x {width} values) exceeds the address space")]
    TooLarge {
        /// Which buffer.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Values per row.
        width: usize,
    },
    /// An activation that does not fit the experts, or has impossible constants.
    #[error("activation: {0}")]
    Activation(String),
    /// A gate that cannot select.
    #[error("gate: {0}")]
    Gate(String),
    /// An instruction set that is not known, or that the machine lacks.
    #[error(
        "`{name}` is no instruction set that this machine has; it has {}",
        crate::Isa::listed()
    )]
    Isa {
        /// What was asked for.
        name: String,
    },
    /// Memory that the system does not give.
    #[error("cannot get {bytes} bytes of memory: {message}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        message: String,
    },
    /// Bytes that are not those of a prepared expert.
    #[error("bytes of a prepared expert: {reason}")]
    PreparedBytes {
        /// What is wrong with them.
        reason: String,
    },
    /// No thread pool of the wanted size.
    #[error("cannot start {threads} threads: {message}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        message: String,
    },
}

impl KernelError {
    /// As it is told of a batch of which this is about the rows from `first` on.
    pub(crate) fn rows_from(mut self, first: usize) -> Self {
        if let Self::LocalId { row, .. } = &mut self {
            *row += first;
        }
        self
    }
}

/// Checks the length of a buffer against its shape.
pub(crate) fn check_len(
    what: &'static str,
    got: usize,
    expected: usize,
    shape: &'static str,
) -> Result<(), KernelError> {
    if got == expected {
        return Ok(());
    }
    Err(KernelError::Length {
        what,
        got,
        expected,
        shape,
    })
}

/// The number of rows in a buffer; a width of 0 has none.
pub(crate) fn whole_rows(
    what: &'static str,
    got: usize,
    width: usize,
    shape: &'static str,
) -> Result<usize, KernelError> {
    if width > 0 && got.is_multiple_of(width) {
        return Ok(got / width);
    }
    Err(KernelError::PartialRow {
        what,
        got,
        width,
        shape,
    })
}

/// The number of values in a buffer that is about to be allocated.
pub(crate) fn area(what: &'static str, rows: usize, width: usize) -> Result<usize, KernelError> {
    rows.checked_mul(width)
        .filter(|n| {
            n.checked_mul(size_of::<f32>())
                .is_some_and(|b| b <= isize::MAX as usize)
        })
        .ok_or(KernelError::TooLarge { what, rows, width })
}
