//! Records and numbers of extended headers, and what is packed of a tree.

use super::*;

#[test]
fn records_count_themselves() {
    for length in [1, 90, 91, 92, 93, 94, 95, 985, 990, 995, 9984] {
        let mut records = Vec::new();
        record(&mut records, b"key", &vec![b'x'; length]);
        let text = String::from_utf8(records).unwrap();
        assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
    }
}

#[test]
fn times_before_1970_have_a_sign() {
    assert_eq!(decimal(5, 1), "5.000000001");
    assert_eq!(decimal(-1, 500_000_000), "-0.500000000");
    assert_eq!(decimal(-2, 250_000_000), "-1.750000000");
    assert_eq!(decimal(-2, 0), "-2.000000000");
}

#[test]
fn a_part_is_packed_with_the_way_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["a/b/in/x", "a/b/skipped/y", "a/bc/z", "w"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(path, "x").expect("a file");
    }
    let mut bytes = Vec::new();
    pack_part(dir.path(), Form::Overlay, b"a/b", &[b"a/b/skipped"], &mut bytes).expect("packed");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names = archive
        .entries()
        .expect("entries")
        .map(|entry| String::from_utf8(entry.expect("an entry").path_bytes().into_owned()).expect("UTF-8"));
    assert_eq!(names.collect::<Vec<_>>(), ["./", "a/", "a/b/", "a/b/in/", "a/b/in/x"]);
}
