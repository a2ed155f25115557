//! Who names whom inside a crate: a reading of its sources, precise enough to find edges that are not drawn and circles.
//!
//! Owns: from source texts to the paths that each file names, their resolution through `use` and `pub use` to the file that
//! defines the item, and circles among files. A `mod` and a `pub use` are no dependency by themselves: they say where a name
//! is found. Code of tests (`#[cfg(test)]`) is left out, and so are programs below `bin`, which are crates of their own.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree, Visibility};

/// Re-exports that are followed one after the other.
const HOPS_MAX: usize = 16;

type Names = Vec<String>;

/// A module: where it is written, what it defines, and what it names.
#[derive(Debug, Default)]
struct Module {
    file: String,
    items: BTreeSet<String>,
    children: BTreeSet<String>,
    /// Names that a `use` has brought in, by their full path.
    aliases: BTreeMap<String, Names>,
    globs: Vec<Names>,
    /// Paths as they are written, of code and of a private `use`.
    named: Vec<Names>,
    /// Paths of a `pub use`.
    exported: Vec<Names>,
}

/// The sources of a crate.
#[derive(Debug, Default)]
pub(super) struct Crate {
    modules: BTreeMap<Names, Module>,
}

impl Crate {
    /// Reads sources, by their path below `src`.
    pub(super) fn read(sources: &BTreeMap<String, String>) -> Self {
        let mut read = Self::default();
        let mut tests = Vec::new();
        for (file, text) in sources.iter().filter(|(file, _)| !file.starts_with("bin/")) {
            let parsed = syn::parse_file(text).unwrap_or_else(|e| panic!("{file} is no Rust: {e}"));
            read.module(file, module_of(file), &parsed.items, &mut tests);
        }
        read.modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
        read
    }

    fn module(&mut self, file: &str, path: Names, items: &[Item], tests: &mut Vec<Names>) {
        let mut reader = Reader::default();
        for item in items.iter().filter(|item| !is_test(attributes(item))) {
            reader.note(item);
            if let Item::Mod(ItemMod { ident, content: Some((_, inner)), .. }) = item {
                self.module(file, joined(&path, &[ident.to_string()]), inner, tests);
            }
        }
        for item in items.iter().filter(|item| is_test(attributes(item))) {
            if let Item::Mod(test) = item {
                tests.push(joined(&path, &[test.ident.to_string()]));
            }
        }
        let module = self.modules.entry(path.clone()).or_default();
        module.file = file.to_owned();
        module.items.extend(reader.items);
        module.children.extend(reader.children);
        for (is_export, written, name) in reader.uses {
            let Some(full) = absolute(&path, module, &written) else { continue };
            match name {
                Some(name) => drop(module.aliases.insert(name, full.clone())),
                None => module.globs.push(full.clone()),
            }
            if is_export { module.exported.push(full) } else { module.named.push(full) }
        }
        for written in reader.paths {
            if let Some(full) = absolute(&path, module, &written) {
                module.named.push(full);
            }
        }
    }

    /// The file that defines what a full path names; none if it is a module.
    fn definer(&self, path: &[String], hops: usize) -> Option<&str> {
        let mut at: Names = Vec::new();
        for (n, name) in path.iter().enumerate() {
            let module = self.modules.get(&at)?;
            let next = joined(&at, std::slice::from_ref(name));
            if self.modules.contains_key(&next) {
                at = next;
                continue;
            }
            if module.items.contains(name) || hops == 0 {
                return Some(&module.file);
            }
            let rest = path.get(n + 1..).unwrap_or_default();
            if let Some(target) = module.aliases.get(name) {
                return self.definer(&joined(target, rest), hops - 1);
            }
            let behind = module.globs.iter().filter(|glob| self.defines(glob, name));
            let found = behind.map(|glob| self.definer(&joined(glob, &path[n..]), hops - 1)).next();
            return found.unwrap_or(Some(&module.file));
        }
        None
    }

    fn defines(&self, module: &[String], name: &str) -> bool {
        let of = self.modules.get(module);
        of.is_some_and(|m| m.items.contains(name) || m.aliases.contains_key(name) || m.children.contains(name))
    }

    /// Which file needs which others.
    pub(super) fn needs(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for module in self.modules.values() {
            let of = needs.entry(&module.file).or_default();
            let found = module.named.iter().filter_map(|path| self.definer(path, HOPS_MAX));
            of.extend(found.filter(|file| *file != module.file));
        }
        needs
    }

    /// Which module of the top level names which others, by a `pub use` too.
    pub(super) fn layers(&self) -> BTreeSet<(&str, &str)> {
        let mut edges = BTreeSet::new();
        for (path, module) in &self.modules {
            let Some(from) = path.first() else { continue };
            let named = module.named.iter().chain(&module.exported).filter_map(|named| named.first());
            let known = named.filter(|to| *to != from && self.modules.contains_key(std::slice::from_ref(*to)));
            edges.extend(known.map(|to| (from.as_str(), to.as_str())));
        }
        edges
    }

    /// Whether there is such a module at the top level.
    pub(super) fn has(&self, module: &str) -> bool {
        self.modules.contains_key(std::slice::from_ref(&module.to_owned()))
    }

    /// Files that need each other, in a circle of any length. Empty if there are none.
    pub(super) fn circles(&self) -> Vec<Vec<&str>> {
        let needs = self.needs();
        let reached = |from: &str| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
            while let Some(file) = todo.pop() {
                for next in needs.get(file).into_iter().flatten() {
                    if seen.insert(*next) {
                        todo.push(next);
                    }
                }
            }
            seen
        };
        let reach: BTreeMap<&str, BTreeSet<&str>> = needs.keys().map(|file| (*file, reached(file))).collect();
        let mut circles = BTreeSet::new();
        for (file, to) in &reach {
            if to.contains(file) {
                circles.insert(to.iter().copied().filter(|other| reach[other].contains(file)).collect::<Vec<_>>());
            }
        }
        circles.into_iter().collect()
    }
}

/// What a list of items defines and names.
#[derive(Debug, Default)]
struct Reader {
    items: BTreeSet<String>,
    children: BTreeSet<String>,
    /// Whether it is an export, the path as written, and the name it gets; none for a `*`.
    uses: Vec<(bool, Names, Option<String>)>,
    paths: Vec<Names>,
}

impl Reader {
    fn note(&mut self, item: &Item) {
        let name = match item {
            Item::Use(item) => return self.note_use(item),
            Item::Mod(item) => {
                self.children.insert(item.ident.to_string());
                return;
            }
            Item::Const(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Fn(item) => Some(&item.sig.ident),
            Item::Static(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            Item::Union(item) => Some(&item.ident),
            Item::Macro(item) => item.ident.as_ref(),
            _ => None,
        };
        self.items.extend(name.map(ToString::to_string));
        self.visit_item(item);
    }

    fn note_use(&mut self, item: &ItemUse) {
        let is_export = !matches!(item.vis, Visibility::Inherited);
        let mut todo = vec![(Vec::new(), &item.tree)];
        while let Some((path, tree)) = todo.pop() {
            match tree {
                UseTree::Path(next) => todo.push((joined(&path, &[next.ident.to_string()]), &next.tree)),
                UseTree::Group(group) => todo.extend(group.items.iter().map(|tree| (path.clone(), tree))),
                UseTree::Glob(_) => self.uses.push((is_export, path, None)),
                UseTree::Name(name) if name.ident == "self" => {
                    let last = path.last().cloned();
                    self.uses.push((is_export, path, last));
                }
                UseTree::Name(name) => {
                    let name = name.ident.to_string();
                    self.uses.push((is_export, joined(&path, std::slice::from_ref(&name)), Some(name)));
                }
                UseTree::Rename(as_) => {
                    let path = if as_.ident == "self" { path } else { joined(&path, &[as_.ident.to_string()]) };
                    self.uses.push((is_export, path, Some(as_.rename.to_string())));
                }
            }
        }
    }

    /// Paths in the arguments of a macro, which is not parsed.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons): (Names, usize) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.paths.push(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.paths.push(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.note_tokens(group.stream());
                    }
                }
            }
        }
        self.paths.push(path);
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_path(&mut self, path: &'a syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'a Macro) {
        self.note_tokens(called.tokens.clone());
        syn::visit::visit_macro(self, called);
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        // In a function: it names what it brings in, for as long as the function.
        self.note_use(item);
    }

    fn visit_vis_restricted(&mut self, _: &'a syn::VisRestricted) {
        // `pub(in crate::x)` depends on nothing.
    }
}

/// The path of the module that a file is.
fn module_of(file: &str) -> Names {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" || path == "main" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// A path as written in a module, from the root of the crate; none if it leads to another crate or is one name of the
/// module's own.
fn absolute(at: &[String], module: &Module, written: &[String]) -> Option<Names> {
    let (first, rest) = written.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" if !rest.is_empty() => Some(joined(at, rest)),
        "super" => {
            let above = written.iter().take_while(|name| *name == "super").count();
            let parent = at.get(..at.len().checked_sub(above)?)?;
            Some(joined(parent, written.get(above..)?))
        }
        name if module.children.contains(name) => Some(joined(at, written)),
        name => module.aliases.get(name).filter(|_| !rest.is_empty()).map(|target| joined(target, rest)),
    }
}

fn joined(front: &[String], back: &[String]) -> Names {
    front.iter().chain(back).cloned().collect()
}

/// Whether an item is there for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        attribute.path().is_ident("test")
            || (is_cfg && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
