//! Special files, frames that readers differ about, bombs, and archives that end early.

use super::Case;
use super::Fate::{Refused, Taken};
use crate::tars::{Head, Tar, gzip, zstd};

pub(super) fn special() -> Vec<Case> {
    let t = Tar::new;
    let node = |kind, name: &[u8], major, minor| Head::new(kind, name).device(major, minor);
    vec![
        ("a disk", t().head(node(b'4', b"sda", 8, 0)).file("ok", b"x").end(), Taken(&["ok"])),
        ("memory", t().head(node(b'3', b"mem", 1, 1)).end(), Taken(&[])),
        (
            "a whiteout in disguise",
            t().file("etc/passwd", b"x").head(node(b'3', b"etc", 0, 0)).end(),
            Taken(&["etc", "etc/passwd"]),
        ),
        ("a device without a number", t().head(Head::new(b'3', b"d").raw(329, &[0; 16])).end(), Taken(&[])),
        ("setuid", t().head(Head::new(b'0', b"su").mode(0o4755)).end(), Taken(&["su"])),
        ("a pipe", t().head(Head::new(b'6', b"p")).end(), Taken(&["p"])),
        ("an unknown type", t().head(Head::new(b'Z', b"z")).end(), Refused("unknown type 'Z'")),
        (
            "a part of a file",
            t().head(Head::new(b'M', b"m")).end(),
            Refused("part of a file that another archive begins"),
        ),
        (
            "a directory with content",
            t().head(Head::new(b'0', b"d/").size(3)).content(b"abc").end(),
            Refused("a directory with content"),
        ),
        ("a whiteout of nothing", t().file(".wh.", b"").end(), Refused("whiteout of nothing")),
        ("a whiteout of the parent", t().file("a/.wh...", b"").end(), Refused("whiteout of nothing")),
        ("a file in a whiteout", t().file(".wh.a/b", b"").end(), Refused("it lies in a whiteout")),
        (
            "AUFS's bookkeeping",
            t().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"x").file(".wh..wh.aufs", b"").end(),
            Taken(&[]),
        ),
        (
            "overlayfs's own attributes",
            t().pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ])
            .dir("d")
            .end(),
            Taken(&["d"]),
        ),
        (
            "attributes of the host's policy",
            t().pax(&[("SCHILY.xattr.security.selinux", b"x"), ("SCHILY.xattr.security.ima", b"x")])
                .file("f", b"")
                .end(),
            Taken(&["f"]),
        ),
        (
            "a malformed capability",
            t().pax(&[("SCHILY.xattr.security.capability", b"junk")]).file("f", b"").end(),
            Refused("the kernel refuses its attribute security.capability"),
        ),
        (
            "an owner beyond 32 bits",
            t().pax(&[("uid", b"4294967296")]).file("f", b"").end(),
            Refused("owner 4294967296 is too large"),
        ),
        (
            "the owner that changes nothing",
            t().pax(&[("gid", b"4294967295")]).file("f", b"").end(),
            Refused("group 4294967295 is too large"),
        ),
        ("an owner beyond a box", t().pax(&[("uid", b"100000")]).file("f", b"").end(), Taken(&["f"])),
        ("a time before time", t().pax(&[("mtime", b"-99999999999.5")]).file("f", b"").end(), Taken(&["f"])),
        ("a time beyond time", t().pax(&[("mtime", b"9223372036854775807")]).file("f", b"").end(), Taken(&["f"])),
    ]
}

/// Archives that two readers read differently, or that end before their end.
pub(super) fn frames() -> Vec<Case> {
    let t = Tar::new;
    let inner = t().file("smuggled", b"x").unended();
    let mut damaged = t().file("a", b"x").end();
    damaged[3] ^= 1;
    let mut tail = t().file("a", b"x").end();
    tail.extend(t().file("smuggled", b"x").unended());
    vec![
        ("no archive", b"This is no archive. ".repeat(100), Refused("checksum")),
        ("a damaged header", damaged, Refused("checksum is wrong")),
        ("no end", t().file("a", b"x").unended(), Taken(&["a"])),
        ("an end and more", tail, Taken(&["a"])),
        (
            "an empty block inside",
            t().file("a", b"x").bytes(&[0; 512]).file("b", b"x").end(),
            Refused("an empty block is followed"),
        ),
        // CVE-2025-62518: the size in the extended header counts.
        (
            "a size in pax",
            t().pax(&[("size", inner.len().to_string().as_bytes())]).head(Head::new(b'0', b"f")).content(&inner).end(),
            Taken(&["f"]),
        ),
        (
            "a size in pax before a long name",
            t().pax(&[("size", b"1024")])
                .gnu_long(b'L', b"long")
                .head(Head::new(b'0', b"f"))
                .content(&[b'x'; 1024])
                .end(),
            Taken(&["long"]),
        ),
        (
            "two names",
            t().pax(&[("path", b"one")]).gnu_long(b'L', b"two").file("three", b"").end(),
            Refused("different values for its name"),
        ),
        (
            "a size on a link",
            t().head(Head::new(b'1', b"h").link(b"f").size(512)).content(&[b'x'; 512]).end(),
            Refused("not in this layer"),
        ),
        (
            "a negative size",
            t().head(Head::new(b'0', b"f").raw(124, &[0xff; 12])).end(),
            Refused("size in a header is negative"),
        ),
        (
            "a huge size",
            t().head(Head::new(b'0', b"f").raw(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")).end(),
            Refused("a layer has at most"),
        ),
        (
            "a size that is no number",
            t().head(Head::new(b'0', b"f").raw(124, b"12x")).end(),
            Refused("size in a header is not a number"),
        ),
        (
            "a size in pax that is no number",
            t().pax(&[("size", b"0x10")]).file("f", b"x").end(),
            Refused("bad number for size"),
        ),
        ("a negative size in pax", t().pax(&[("size", b"-1")]).file("f", b"x").end(), Refused("bad number for size")),
        ("a header for nothing", t().pax(&[("path", b"x")]).end(), Refused("belongs to no entry")),
        (
            "a malformed record",
            t().head(Head::new(b'x', b"P").size(12)).content(b"99 path=abc\n").file("f", b"").end(),
            Refused("malformed record"),
        ),
        (
            "a global header",
            t().pax_of(b'g', &[("path", b"../evil"), ("uid", b"7")]).file("f", b"").end(),
            Taken(&["f"]),
        ),
        ("a label", t().head(Head::new(b'V', b"label").gnu()).file("f", b"").end(), Taken(&["f"])),
        (
            "old directories",
            t().head(Head::new(0, b"d/").raw(257, &[0; 8])).file("d/x", b"").end(),
            Taken(&["d", "d/x"]),
        ),
        ("bzip2", b"BZh91AY&SY".to_vec(), Refused("compressed with bzip2")),
        ("xz", b"\xfd7zXZ\0".to_vec(), Refused("compressed with xz")),
        (
            "gzip of garbage",
            [gzip(b"x").as_slice(), b"garbage in place of a member"].concat(),
            Refused("compressed data is damaged"),
        ),
        (
            "damaged gzip",
            {
                let mut bytes = gzip(&t().file("a", &[7; 4000]).end());
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
                bytes
            },
            Refused("the compressed data is damaged"),
        ),
        ("damaged zstd", b"\x28\xb5\x2f\xfd\xff\xff\xff\xff".to_vec(), Refused("compressed data is")),
        (
            "a huge window of zstd",
            b"\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00".to_vec(),
            Refused("compressed data is damaged"),
        ),
        ("zstd", zstd(&t().file("a", b"x").end()), Taken(&["a"])),
        (
            "zstd in two frames",
            {
                let bytes = t().file("a", &[1; 3000]).end();
                [zstd(&bytes[..700]), b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(), zstd(&bytes[700..])].concat()
            },
            Taken(&["a"]),
        ),
        (
            "gzip in two members",
            {
                let bytes = t().file("a", &[1; 3000]).end();
                [gzip(&bytes[..700]), gzip(&bytes[700..])].concat()
            },
            Taken(&["a"]),
        ),
    ]
}

pub(super) fn bombs() -> Vec<Case> {
    let t = Tar::new;
    let many = (0..201).fold(t(), |tar, number| tar.dir(&format!("d{number}")));
    let headers = (0..900).fold(t(), |tar, _| tar.head(Head::new(b'g', b"g")));
    let zeros = vec![0; 4 << 20];
    let sparse = |map: &str, size: &str, content: &[u8]| {
        t().pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.name", b"s")])
            .file("GNUSparseFile.0/s", content)
            .end()
    };
    let names = (0..300).map(|number| (format!("SCHILY.xattr.user.{number}"), *b"x")).collect::<Vec<_>>();
    let names: Vec<(&str, &[u8])> = names.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    vec![
        ("a bomb", gzip(&t().file("zeros", &zeros).end()), Refused("expands to more than 20 times")),
        ("a bomb in two stages", gzip(&gzip(&t().file("zeros", &zeros).end())), Refused("checksum")),
        ("too many entries", many.end(), Refused("more than 200 entries")),
        ("too many headers", headers.end(), Refused("more than 800 headers")),
        ("too many bytes", t().head(Head::new(b'0', b"f").size(9 << 20)).end(), Refused("a layer has at most 8388608")),
        (
            "many bytes in two",
            t().file("a", &vec![1; 5 << 20]).file("b", &vec![1; 4 << 20]).end(),
            Refused("more than 8388608 bytes"),
        ),
        (
            "a huge extended header",
            t().head(Head::new(b'x', b"P").size(1 << 30)).end(),
            Refused("extended header has 1073741824 bytes; at most 8192"),
        ),
        ("a huge long name", t().head(Head::new(b'L', b"L").gnu().size(1 << 30)).end(), Refused("at most 4097")),
        ("many attributes", t().pax(&names[..120]).file("f", b"").end(), Taken(&["f"])),
        (
            "a huge sparse file",
            sparse("0,3", "9223372036854775807", b"abc"),
            Refused("files of the layer have more than"),
        ),
        ("segments out of order", sparse("10,3,0,3", "100", b"abcdef"), Refused("overlap or are out of order")),
        ("segments that overlap", sparse("0,3,2,3", "100", b"abcdef"), Refused("overlap or are out of order")),
        ("segments beyond the end", sparse("0,3,98,3", "100", b"abcdef"), Refused("beyond its size")),
        ("segments that overflow", sparse("18446744073709551615,3", "100", b"abc"), Refused("beyond its size")),
        ("segments that are not there", sparse("0,3,50,300", "1000", b"abc"), Refused("the archive has 3 of it")),
        ("a map with an odd end", sparse("0,3,50", "1000", b"abc"), Refused("odd number of numbers")),
        ("a sparse file", sparse("0,3,4096,3", "9000", b"abcdef"), Taken(&["s"])),
        (
            "a map without an end",
            t().pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"10"),
                ("GNU.sparse.name", b"s"),
            ])
            .file("x", &[b'1'; 512])
            .end(),
            Refused("map of sparse segments is malformed"),
        ),
        (
            "an unknown sparse version",
            t().pax(&[("GNU.sparse.major", b"7"), ("GNU.sparse.realsize", b"10")]).file("x", b"").end(),
            Refused("sparse file of an unknown version"),
        ),
        (
            "GNU's sparse file that reaches too far",
            t().head(
                Head::new(b'S', b"s")
                    .gnu()
                    .size(3)
                    .raw(386, b"00000000144\x0000000000003\0")
                    .raw(483, b"00000000012\0"),
            )
            .content(b"abc")
            .end(),
            Refused("beyond its size"),
        ),
    ]
}

/// The same archive cut off at every block and at odd places.
pub(super) fn truncated() -> Vec<Case> {
    let whole = Tar::new()
        .dir("d")
        .pax(&[("path", b"d/with-a-long-name"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", &[5; 1300])
        .gnu_long(b'L', b"d/another")
        .file("x", &[6; 700])
        .unended();
    let compressed = gzip(&whole);
    let mut cases: Vec<Case> = Vec::new();
    for at in
        [1, 511, 513, 700, 1024, 1030, 1536, 1537, 2048, 2900, 3583, 3585, 4096, 4100, 4608, 4700, 5120, 5121, 5700]
    {
        // At the end of an entry there is nothing to see.
        cases.push((
            "cut off",
            whole[..at].to_vec(),
            Refused(if matches!(at, 1536 | 4608) { "belongs to no entry" } else { "truncated" }),
        ));
    }
    for at in [3, 12, compressed.len() / 2, compressed.len() - 9, compressed.len() - 1] {
        cases.push(("compressed and cut off", compressed[..at].to_vec(), Refused("truncated")));
    }
    cases
}
