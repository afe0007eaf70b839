//! Interface to write a head, so that each rule about what we send stands once for all formats.
