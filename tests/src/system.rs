//! Facts about whole federations of real processes.
