//! Placement strategies, expert load, balance metrics and the expert map manager.
