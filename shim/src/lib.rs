//! What stays with a container.
