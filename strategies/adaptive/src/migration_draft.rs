// Migration is being written in crates/placement/src/migration/ by another session: not needed here.
