//! The runtime `node` as its image has it: what a person expects is there and current, and a project of Next.js is installed,
//! built and served in a small box. Other runtimes are looked at if `ICEBOX_TEST_RUNTIMES` names them.

use std::time::Duration;

use icebox_tests::net::World;
use icebox_tests::net::outside::certificates;
use icebox_tests::{Daemon, TestBox, runtimes, wait_until};
use serde_json::json;

/// Tools that every runtime has.
const TOOLS: &str = "git curl wget sudo make gcc g++ pkg-config rg jq less vim.tiny ps ip unzip ssh tar xz";

/// A command, and the least version that it must tell.
type Told = (&'static str, &'static [u32]);

/// What is current of each runtime.
const CURRENT: [(&str, &[Told]); 5] = [
    (
        "node",
        &[
            ("node --version", &[24]),
            ("npm --version", &[11]),
            ("npx --version", &[11]),
            ("corepack --version", &[0, 30]),
            ("python --version", &[3, 13]),
        ],
    ),
    (
        "python",
        &[
            ("python --version", &[3, 13]),
            ("python3 --version", &[3, 13]),
            ("pip --version", &[25]),
            ("pip3 --version", &[25]),
        ],
    ),
    ("golang", &[("go version", &[1, 27])]),
    ("ruby", &[("ruby --version", &[3, 3]), ("bundle --version", &[2]), ("gem --version", &[3])]),
    (
        "rust",
        &[
            ("rustc --version", &[1, 85]),
            ("cargo --version", &[1, 85]),
            ("cargo clippy --version", &[0, 1]),
            ("rustfmt --version", &[1]),
        ],
    ),
];

/// Something that each runtime is for, without the network. It prints `made`.
const WORKS: [(&str, &str); 5] = [
    (
        "node",
        "mkdir m && cd m && npm init -y >/dev/null && printf 'const t: string = \"made\"; console.log(t)\\n' > a.ts && node a.ts",
    ),
    (
        "python",
        "python -m venv v && printf '#include <Python.h>\\nint x;\\n' > x.c && gcc $(python3-config --includes) -c x.c && v/bin/pip --version >/dev/null && v/bin/python -c 'import ssl, sqlite3; print(\"made\")'",
    ),
    (
        "golang",
        "mkdir g && cd g && go mod init example.test/g 2>/dev/null && printf 'package main\\n\\n// int one() { return 1; }\\nimport \"C\"\\nimport \"fmt\"\\n\\nfunc main() { if C.one() == 1 { fmt.Println(\"made\") } }\\n' > main.go && go run .",
    ),
    (
        "ruby",
        "mkdir r && cd r && bundle init >/dev/null && bundle exec ruby -ropenssl -ryaml -e 'puts \"made\"' && printf 'require \"mkmf\"\\ncreate_makefile(\"x\")\\n' > extconf.rb && printf '#include <ruby.h>\\nvoid Init_x(void) {}\\n' > x.c && ruby extconf.rb >/dev/null && make >/dev/null && ruby -I. -rx -e ''",
    ),
    (
        "rust",
        "cargo new --quiet --vcs none c 2>/dev/null && cd c && sed -i s/Hello,\\ world!/made/ src/main.rs && cargo run --quiet",
    ),
];

const PACKAGE: &str = r#"{
  "name": "shop", "private": true, "version": "1.0.0",
  "scripts": { "build": "next build", "start": "next start" },
  "dependencies": { "next": "^16.0.0", "react": "^19.0.0", "react-dom": "^19.0.0" },
  "devDependencies": { "typescript": "^5.0.0", "@types/node": "^24.0.0", "@types/react": "^19.0.0" }
}
"#;
const LAYOUT: &str = "export default function Layout({ children }: { children: React.ReactNode }) {
  return <html lang=\"en\"><body>{children}</body></html>;
}
";
const PAGE: &str = "export default function Page() {
  return <main><h1>{['made', 'by', 'next'].join(' ')}</h1></main>;
}
";
const ROUTE: &str = "let asked = 0;
export const dynamic = 'force-dynamic';
export function GET() {
  asked += 1;
  return Response.json({ asked, node: process.version, pid: process.pid });
}
";

/// The first number in a text with dots in it.
fn version(text: &str) -> Vec<u32> {
    let start = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let number: String = text[start..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    number.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// All that is missing or too old.
fn faults(made: &TestBox, runtime: &str) -> Vec<String> {
    let missing = made.out(&format!("for tool in {TOOLS}; do command -v $tool >/dev/null || echo no $tool; done"));
    let mut faults: Vec<String> = missing.lines().map(str::to_owned).collect();
    let (_, current) = CURRENT.iter().find(|(name, _)| *name == runtime).expect("a runtime");
    for (command, least) in *current {
        let told = made.sh(&format!("{command} 2>&1"));
        if told.code != 0 || version(&told.stdout).as_slice() < *least {
            faults.push(format!("{command}: {} (exit {}), wanted {least:?}", told.stdout.trim(), told.code));
        }
    }
    let charmap = made.sh("LC_ALL=C.UTF-8 locale charmap 2>&1");
    if charmap.stdout.trim() != "UTF-8" {
        faults.push(format!("C.UTF-8: {}", charmap.stdout));
    }
    let zone = made.sh("TZ=Europe/Berlin date -d 2026-07-01T00:00Z +%H 2>&1");
    if zone.stdout.trim() != "02" {
        faults.push(format!("tzdata: {}", zone.stdout));
    }
    let (_, works) = WORKS.iter().find(|(name, _)| *name == runtime).expect("a runtime");
    let told = made.sh(&format!("set -e; {works}"));
    if told.code != 0 || told.stdout.trim() != "made" {
        faults.push(format!("{works}: exit {}\n{}\n{}", told.code, told.stdout, told.stderr));
    }
    faults
}

#[test]
fn a_runtime_has_what_a_person_expects() {
    let wanted = std::env::var("ICEBOX_TEST_RUNTIMES").unwrap_or_else(|_| "node".to_owned());
    for runtime in wanted.split(',') {
        runtimes::have(runtime);
        let daemon = Daemon::start().with_images(&runtimes::images_of_runtimes());
        let made = daemon.api().create(&json!({ "runtime": runtime }));
        let faults = faults(&made, runtime);
        assert!(faults.is_empty(), "{runtime}:\n{}", faults.join("\n"));
    }
}

/// Asks the server in the box.
fn ask(made: &TestBox, path: &str) -> String {
    made.out(&format!("curl -sSf http://127.0.0.1:3000{path}"))
}

#[test]
fn a_project_of_next_js_is_built_and_served_in_a_small_box() {
    runtimes::have("node");
    let world = World::new();
    let proxy = world.open_outside();
    let daemon = world.daemon().with_images(&runtimes::images_of_runtimes());
    let made = daemon.api().create(&json!({
        "runtime": "node", "size": "small",
        "env_vars": {
            "https_proxy": proxy, "NODE_EXTRA_CA_CERTS": "/workspace/home/certificates.pem", "NEXT_TELEMETRY_DISABLED": "1",
        },
    }));
    made.write("certificates.pem", &certificates());
    made.out("mkdir -p shop/app/api/count");
    for (path, text) in [
        ("package.json", PACKAGE),
        ("app/layout.tsx", LAYOUT),
        ("app/page.tsx", PAGE),
        ("app/api/count/route.ts", ROUTE),
    ] {
        made.write(&format!("shop/{path}"), text);
    }
    let in_project = |option: &str, command: &str| {
        let argv = ["exec", option, "-T", "-w", "shop", &made.id, "--"].into_iter().chain(command.split(' '));
        let output = daemon.icebox(&argv.collect::<Vec<_>>()).output().expect("icebox ends");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
        assert!(output.status.success(), "{command}: {said}");
    };
    in_project("-n", "npm install --no-audit --no-fund --no-update-notifier --loglevel error");
    in_project("-n", "npm run build");
    in_project("-d", "npm start");
    wait_until(Duration::from_secs(120), "the server of the project", || {
        made.sh("curl -sf http://127.0.0.1:3000/ -o page.html").code == 0
    });
    assert!(made.out("cat page.html").contains("<h1>made by next</h1>"));
    let first: serde_json::Value = serde_json::from_str(&ask(&made, "/api/count")).expect("JSON");
    assert_eq!(first["asked"], 1, "{first}");
    assert!(first["node"].as_str().is_some_and(|node| version(node).as_slice() >= [24].as_slice()), "{first}");

    made.pause();
    assert_eq!(made.status(), "paused");
    // The request wakes the box, and the process that was frozen answers.
    let second: serde_json::Value = serde_json::from_str(&ask(&made, "/api/count")).expect("JSON");
    assert_eq!((&second["asked"], &second["pid"]), (&json!(2), &first["pid"]), "{second}");

    let used = daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok();
    assert_eq!(used["oom_kills"], 0, "{used}");
}
