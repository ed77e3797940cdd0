//! Communicators, dispatch and combine of expert parallelism.
