//! One module per subcommand.

pub(crate) mod inspect;
pub(crate) mod map;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod strategies;
