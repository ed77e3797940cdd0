mod cut;
mod memory;
mod plans;
mod scenario;
