//! Part of unif2ace.
