//! Paths and links that lead out of a layer.

use super::Case;
use super::Fate::{Refused, Taken, TakenInside};
use crate::tars::{Head, Tar};

pub(super) fn traversal(outside: &str) -> Vec<Case> {
    let t = Tar::new;
    let deep = "a/".repeat(17) + "x";
    let deep: &'static str = Box::leak(deep.into_boxed_str());
    vec![
        ("dot dot", t().file("../evil", b"x").end(), Refused("'../evil': its path leads upwards")),
        ("dot dot inside", t().file("a/../../evil", b"x").end(), Refused("leads upwards")),
        ("dot dot at the end", t().dir("a/..").end(), Refused("leads upwards")),
        ("harmless dot dot", t().dir("a").file("a/../b", b"x").end(), Refused("leads upwards")),
        ("dot dot in a directory", t().dir("../../canary/made").end(), Refused("leads upwards")),
        ("dot dot in pax", t().pax(&[("path", b"../evil")]).file("ok", b"x").end(), Refused("leads upwards")),
        ("dot dot in a long name", t().gnu_long(b'L', b"../evil").file("ok", b"x").end(), Refused("leads upwards")),
        (
            "dot dot in a prefix",
            t().head(Head::new(b'0', b"evil").raw(345, b"..")).end(),
            Refused("'../evil': its path leads upwards"),
        ),
        ("absolute", t().file("/evil", b"x").end(), Taken(&["evil"])),
        ("many slashes", t().file("//a///b", b"x").end(), Taken(&["a", "a/b"])),
        ("dots", t().file("./a/./b", b"x").end(), Taken(&["a", "a/b"])),
        ("absolute to the outside", t().file(outside, b"x").end(), TakenInside),
        ("a name of nothing", t().file("", b"x").end(), Refused("the root of a layer must be a directory")),
        ("the root as a link", t().symlink("./", "/etc").end(), Refused("the root of a layer must be a directory")),
        ("a NUL in pax", t().pax(&[("path", b"a\0/../b")]).file("ok", b"x").end(), Refused("NUL byte in path")),
        ("too deep", t().file(deep, b"x").end(), Refused("directories deep; at most 16")),
        (
            "a long part",
            t().pax(&[("path", &[b'x'; 256])]).file("ok", b"x").end(),
            Refused("a part of its path has 256 bytes"),
        ),
        (
            "a long path",
            t().pax(&[("path", "ab".repeat(2100).as_bytes())]).file("ok", b"x").end(),
            Refused("its path has 4200 bytes; at most 4096"),
        ),
        ("names that are not UTF-8", t().head(Head::new(b'0', b"\xff\xfe")).end(), Taken(&["\\xff\\xfe"])),
        ("a newline", t().file("a\nb", b"x").end(), Taken(&["a\\nb"])),
        ("a backslash", t().file("..\\evil", b"x").end(), Taken(&["..\\\\evil"])),
    ]
}

pub(super) fn links(outside: &str) -> Vec<Case> {
    let t = Tar::new;
    let long = "x".repeat(5000);
    let file = format!("{outside}/secret");
    vec![
        (
            "through a link",
            t().symlink("out", outside).file("out/evil", b"x").end(),
            Refused("'out/evil': its path leads through a symbolic link"),
        ),
        (
            "through a relative link",
            t().symlink("out", "../../..").file("out/evil", b"x").end(),
            Refused("symbolic link"),
        ),
        (
            "through two links",
            t().symlink("a", "b").symlink("b", outside).file("a/evil", b"x").end(),
            Refused("symbolic link"),
        ),
        (
            "through a link inside",
            t().dir("real").symlink("way", "real").file("way/x", b"x").end(),
            Refused("symbolic link"),
        ),
        ("a directory through a link", t().symlink("out", outside).dir("out/made").end(), Refused("symbolic link")),
        ("a link through a link", t().symlink("out", outside).symlink("out/l", "x").end(), Refused("symbolic link")),
        (
            "a pipe through a link",
            t().symlink("out", outside).head(Head::new(b'6', b"out/p")).end(),
            Refused("symbolic link"),
        ),
        (
            "a whiteout through a link",
            t().symlink("out", outside).file("out/.wh.secret", b"").end(),
            Refused("symbolic link"),
        ),
        (
            "an opaque directory through a link",
            t().symlink("out", outside).file("out/.wh..wh..opq", b"").end(),
            Refused("through"),
        ),
        ("a file over a link", t().symlink("f", &file).file("f", b"mine").end(), Taken(&["f"])),
        (
            "a directory over a link",
            t().symlink("d", outside).dir("d").file("d/evil", b"x").end(),
            Taken(&["d", "d/evil"]),
        ),
        ("a link over a directory", t().dir("d").file("d/x", b"x").symlink("d", outside).end(), Taken(&["d"])),
        (
            "a link in place of a directory in use",
            t().dir("d").file("d/x", b"x").symlink("d", outside).file("d/evil", b"x").end(),
            Refused("symbolic link"),
        ),
        ("a link to a dead end", t().symlink("l", "/no/such/place").end(), Taken(&["l"])),
        ("a link to itself", t().symlink("l", "l").file("l/x", b"x").end(), Refused("symbolic link")),
        ("a link without a target", t().symlink("l", "").end(), Refused("target has 0 bytes")),
        (
            "a link with a long target",
            t().gnu_long(b'K', &long.as_bytes()[..4000]).pax(&[]).symlink("l", "x").end(),
            Taken(&["l"]),
        ),
        (
            "a link with too long a target",
            t().gnu_long(b'K', long.as_bytes()).symlink("l", "x").end(),
            Refused("at most 4097"),
        ),
        ("proc's links", t().symlink("p", "/proc/self/root").file("p/evil", b"x").end(), Refused("symbolic link")),
        (
            "a hard link out",
            t().hardlink("h", "../../canary/secret").end(),
            Refused("it is a hard link to '../../canary/secret': its path leads upwards"),
        ),
        ("a hard link to a host path", t().hardlink("h", &file).end(), Refused("which is not in this layer")),
        (
            "a hard link through a link",
            t().symlink("out", outside).hardlink("h", "out/secret").file("h", b"evil").end(),
            Refused("symbolic link"),
        ),
        (
            "a hard link to a link, written through",
            t().symlink("l", &file).hardlink("h", "l").file("h", b"evil").end(),
            Taken(&["h", "l"]),
        ),
        (
            "a hard link to a directory",
            t().dir("d").hardlink("h", "d").end(),
            Refused("hard link to the directory 'd'"),
        ),
        ("a hard link to the root", t().hardlink("h", "./").end(), Refused("hard link to the root")),
        ("a hard link to itself", t().file("h", b"x").hardlink("h", "h").end(), Refused("hard link to itself")),
        ("a hard link to what comes later", t().hardlink("h", "f").file("f", b"x").end(), Refused("not in this layer")),
        ("a hard link to a whiteout", t().file(".wh.f", b"").hardlink("h", "f").end(), Refused("not in this layer")),
        (
            "a hard link in place of its target's directory",
            t().dir("d").file("d/f", b"x").hardlink("d", "d/f").end(),
            Refused("not in this layer"),
        ),
        (
            "a file below a file",
            t().file("f", b"x").file("f/x", b"x").end(),
            Refused("through something that is not a directory"),
        ),
    ]
}
