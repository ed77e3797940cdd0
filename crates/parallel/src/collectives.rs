//! The collectives between processes, made of what each transport does in its own way.

use moekit_routing::Rank;

use crate::agreement::Header;
use crate::call::{Call, Collective};
use crate::reduce::reduce_in_rank_order;
use crate::standing::Standing;
use crate::{Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp};

/// What a transport between processes does in its own way.
pub(crate) trait Transport: Communicator + Sized {
    /// Does `act` with what this rank knows of the group, unless it has returned.
    fn with_standing<T>(
        &self,
        call: &dyn Fn() -> String,
        act: impl FnOnce(&mut Standing) -> Result<T, CommError>,
    ) -> Result<T, CommError>;

    /// Sends each rank the header, which says that its part of `send` follows, and the part.
    fn scatter(
        &self,
        call: Call,
        header: Header,
        send: &Buffer,
        counts: &[usize],
    ) -> Result<Blocks, CommError>;

    /// Sends all ranks the header and all of `send`.
    fn gather(&self, call: Call, header: Header, send: &Buffer) -> Result<Blocks, CommError>;

    /// Refuses a collective: what this rank got wrong, the others would wait for in vain.
    fn refuse(&self, error: CommError) -> CommError {
        self.abort(&error.to_string());
        error
    }
}

/// A rank in a call, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entered<'a, T: Transport> {
    transport: &'a T,
    call: Call,
}

impl<T: Transport> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        let leave = |standing: &mut Standing| {
            standing.leave_call();
            Ok(())
        };
        // A rank that has returned is in no call.
        let call = self.call;
        self.transport
            .with_standing(&|| call.to_string(), leave)
            .ok();
    }
}

/// Notes that a rank is in a call.
pub(crate) fn enter<T: Transport>(transport: &T, call: Call) -> Result<Entered<'_, T>, CommError> {
    transport.with_standing(&|| call.to_string(), |standing| standing.enter(call))?;
    Ok(Entered { transport, call })
}

fn enter_collective<T: Transport>(
    transport: &T,
    collective: Collective,
) -> Result<Entered<'_, T>, CommError> {
    let call = Call::Collective(collective);
    let failure = |standing: &mut Standing| match standing.failure() {
        Some(failure) => Err(failure.clone()),
        None => Ok(()),
    };
    transport.with_standing(&|| call.to_string(), failure)?;
    enter(transport, call).map_err(|error| transport.refuse(error))
}

pub(crate) fn all_to_all_v<T: Transport>(
    transport: &T,
    send: &Buffer,
    counts: &[usize],
) -> Result<Blocks, CommError> {
    let size = transport.size();
    if counts.len() != size {
        let got = counts.len();
        return Err(transport.refuse(CommError::NumCounts { got, size }));
    }
    send.split(counts)
        .map_err(|error| transport.refuse(error))?;
    let entered = enter_collective(transport, Collective::AllToAllV)?;
    let header = Header::new(Collective::AllToAllV);
    transport.scatter(entered.call, header, send, counts)
}

pub(crate) fn all_gather_v<T: Transport>(
    transport: &T,
    send: &Buffer,
) -> Result<Blocks, CommError> {
    let entered = enter_collective(transport, Collective::AllGatherV)?;
    transport.gather(entered.call, Header::new(Collective::AllGatherV), send)
}

pub(crate) fn barrier<T: Transport>(transport: &T) -> Result<(), CommError> {
    let entered = enter_collective(transport, Collective::Barrier)?;
    let header = Header::new(Collective::Barrier);
    let gathered = transport.gather(entered.call, header, &Buffer::default());
    gathered.map(drop)
}

/// Each rank sums one part of the values and tells the others.
pub(crate) fn all_reduce<T: Transport>(
    transport: &T,
    values: &Buffer,
    element: ElementType,
    op: ReduceOp,
) -> Result<Buffer, CommError> {
    values
        .check_multiple_of(element.size())
        .map_err(|error| transport.refuse(error))?;
    let count = values.len() / element.size();
    let collective = Collective::AllReduce { op, element, count };
    let entered = enter_collective(transport, collective)?;
    let header = Header::new(collective);

    let size = transport.size();
    let start = |rank: usize| rank * count / size;
    let lengths: Vec<usize> = (0..size)
        .map(|rank| (start(rank + 1) - start(rank)) * element.size())
        .collect();
    let parts = transport.scatter(entered.call, header, values, &lengths)?;
    let reduced = reduce_in_rank_order(parts.into_buffers(), element, op);
    let (reduced, header) = match reduced {
        Ok(reduced) => (reduced, header),
        Err(CommError::Overflow { index, .. }) => {
            let first = start(transport.rank().index());
            (Buffer::default(), header.with_overflow(first + index))
        }
        Err(other) => return Err(transport.refuse(other)),
    };
    let whole = transport.gather(entered.call, header, &reduced)?;
    Ok(whole.into_joined())
}

/// The next message of a rank, once there is an answer to whether it comes.
pub(crate) fn recv<T: Transport>(
    transport: &T,
    from: Rank,
    tag: u32,
    wait: impl FnOnce(Call) -> Result<Buffer, CommError>,
) -> Result<Buffer, CommError> {
    let from = from.index();
    let call = Call::Recv { from, tag };
    let _entered = enter(transport, call)?;
    let result = wait(call);
    if let Err(error @ CommError::Deadlock { .. }) = &result {
        transport.abort(&error.to_string());
    }
    result
}
