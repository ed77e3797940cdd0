//! One module per subcommand.

pub(crate) mod bench;
mod comm;
pub(crate) mod compare;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod live;
pub(crate) mod map;
mod migration_report;
pub(crate) mod plan;
mod plan_report;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod strategies;
