//! What both sides of tropa must compute alike: the words, their bytes, evidence and fusion, the roster, and,
//! behind the feature `mesh`, the one libp2p swarm.
//!
//! # Words
//!
//! An *install* is one running Ollama; an *agent* is our process beside it. A *kernel* is one booted operating
//! system, a *machine* one physical box, a *device* what one install at a time may use (a GPU, a MIG slice, the
//! memory system). A *lane* is the set of devices that an install occupies while it works. *Evidence* is what an
//! agent can read about its hardware; the *roster* is who is there now. A *chunk* is one request to one model, an
//! *attempt* one execution of it.
//!
//! # Invariants
//!
//! 1. Two installs never work at the same time on lanes that share a device ([`device`]).
//! 2. Sameness is decided by hardware evidence, never by address, port, host name or peer id ([`fuse`]).
//!    Evidence that is missing or contradictory counts less hardware, not more.
//! 3. Raw hardware ids never leave the machine: only keyed tags do ([`evidence`]).
//! 4. Everything that a remote can influence is bounded ([`bounded`], [`codec`]).
//!
//! Nothing in this crate opens a socket unless the feature `mesh` is on, and nothing in it reads a clock outside
//! `mesh.rs`: time is an argument.

pub mod bounded;
pub mod canonical;
pub mod codec;
pub mod continuity;
pub mod crash;
pub mod device;
pub mod epoch;
pub mod evidence;
pub mod failure;
pub mod fuse;
pub mod hush;
pub mod id;
pub mod known;
pub mod message;
pub mod permit;
pub mod proof;
pub mod random;
pub mod roster;
pub mod secret;
pub mod system;
pub mod uid;

#[cfg(feature = "mesh")]
pub mod chunk_stream;
#[cfg(feature = "mesh")]
pub mod mesh;
