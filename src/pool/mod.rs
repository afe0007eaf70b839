//! Pools and their backends. Pure: no sockets, no tasks; time comes in as an argument.
