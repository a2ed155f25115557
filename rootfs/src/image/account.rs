//! What every root of a box has, whatever image it is made of.

/// The user that everything in a box runs as.
pub(crate) const USER: &str = "boxuser";
pub(crate) const USER_ID: u32 = 1000;
pub(crate) const HOME: &str = "workspace/home";
pub(crate) const USER_HOME: &str = "home/boxuser";

/// The launcher puts a box's own names over these two.
pub(crate) const HOSTNAME: &str = "icebox\n";
pub(crate) const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
pub(crate) const GIT_CONFIG: &str = "[user]\n\tname = Upstash Box\n\temail = box@upstash.com\n";
