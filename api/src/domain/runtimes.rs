//! The runtimes that clients ask for by name, as Boxfiles of this version.

/// Name and Boxfile of each.
pub const RUNTIMES: [(&str, &str); 5] = [
    ("golang", include_str!("../../../rootfs/runtimes/golang.Boxfile")),
    ("node", include_str!("../../../rootfs/runtimes/node.Boxfile")),
    ("python", include_str!("../../../rootfs/runtimes/python.Boxfile")),
    ("ruby", include_str!("../../../rootfs/runtimes/ruby.Boxfile")),
    ("rust", include_str!("../../../rootfs/runtimes/rust.Boxfile")),
];

/// The Boxfile of a runtime.
#[must_use]
pub fn boxfile(runtime: &str) -> Option<&'static str> {
    RUNTIMES.iter().find(|(name, _)| *name == runtime).map(|(_, text)| *text)
}

/// The name that the image of a runtime has in the store.
#[must_use]
pub fn image_name(runtime: &str) -> String {
    format!("localhost/icebox-{runtime}:latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_is_a_boxfile_on_the_base_image() {
        for (name, text) in RUNTIMES {
            let read = icebox_boxfile::Boxfile::read(name, text);
            assert!(read.is_ok(), "{name}: {:?}", read.err());
            assert!(
                text.contains("\nFROM icebox/base\n")
                    && image_name(name).parse::<icebox_rootfs::oci::Reference>().is_ok(),
                "{name}"
            );
            assert_eq!(boxfile(name), Some(text));
        }
        assert_eq!(boxfile("node-alpine"), None);
    }
}
