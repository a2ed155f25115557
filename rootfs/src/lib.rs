//! Root file systems and block volumes.
