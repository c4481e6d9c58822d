//! What a network is: a table of stages, from which everything else is built.
