//! The mesh over real TCP on loopback.
