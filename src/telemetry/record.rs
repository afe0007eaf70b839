//! The record of one exchange or session: filled on the way, emitted once, on finish or drop.
