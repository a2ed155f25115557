//! `icebox-launch`: starts one box; see [`icebox_shim::launcher`].

fn main() {
    std::process::exit(icebox_shim::launcher::main());
}
