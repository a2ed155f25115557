//! `icebox exec` and `icebox code`: commands in a box, with the local streams, terminal and signals tied to them.

use std::io::Read;
use std::os::fd::AsFd;

use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::args;
use super::client::{Client, Patience, read};
use super::error::{Error, STDOUT, report};
use super::output::{Output, stream};
use super::place::{HOME, absolute};
use super::session::{self, Control, Start};
use super::terminal::{self, RawMode};
use super::types::ExecResult;

const STDIN_CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that wait for the network.
const STDIN_CHUNKS_MAX: usize = 4;
const CONTROLS_MAX: usize = 16;
/// So many INTs end the session even if the command ignores them.
const INTERRUPTS_MAX: u32 = 3;
/// So many TERMs or HUPs do.
const TERMINATIONS_MAX: u32 = 2;
/// Code is sent in one JSON body.
const CODE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Exit codes of a process that ended by INT or TERM, by the convention of shells.
const EXIT_INTERRUPTED: u8 = 130;
const EXIT_TERMINATED: u8 = 143;
/// Starts "$@" in the background. A run's answer does not wait for it, and it does not count as a run that keeps the box
/// awake. Its output goes nowhere, as with `docker exec -d`.
const DETACH: &str = "command -v -- \"$1\" >/dev/null || { echo \"$1: command not found\" >&2; exit 127; }\n\
     \"$@\" </dev/null >/dev/null 2>&1 &";

/// `icebox exec`.
pub(crate) async fn exec(client: &Client, output: &Output, exec: args::Exec) -> Result<u8, Error> {
    let id = client.find(&exec.name).await?.id;
    if exec.detach || output.is_json() {
        return exec_whole(client, output, &id, exec).await;
    }
    let tty = exec.tty || (!exec.no_tty && !exec.no_stdin && terminal::is_interactive());
    let no_stdin = exec.no_stdin;
    let start = start_frame(exec, tty, std::env::var("TERM").ok());
    let socket = session::connect(client, &id).await?;
    let raw = if tty { RawMode::enter()? } else { None };
    let stdin = if no_stdin { channel(1).1 } else { read_stdin()? };
    let (control_sender, controls) = channel(CONTROLS_MAX);
    let streams = (stream(std::io::stdout(), STDOUT)?, stream(std::io::stderr(), "standard error")?);
    let signals = Signals::catch(tty)?;
    let outcome = tokio::select! {
        outcome = session::run(socket, &start, stdin, controls, streams) => outcome,
        code = signals.forward(control_sender) => Ok(code),
    };
    // Before anything is printed: in raw mode lines would come out as stairs.
    drop(raw);
    outcome
}

fn start_frame(exec: args::Exec, tty: bool, term: Option<String>) -> Start {
    let mut env: Vec<String> = Vec::new();
    if let Some(term) = term.filter(|_| tty) {
        env.push(format!("TERM={term}"));
    }
    env.extend(exec.env.into_iter().map(|(name, value)| format!("{name}={value}")));
    let argv = if exec.argv.is_empty() { vec!["bash".to_owned(), "-l".to_owned()] } else { exec.argv };
    let cwd = exec.workdir.map_or_else(|| HOME.to_owned(), |workdir| absolute(&workdir));
    let start = Start { argv, cwd, env, ..Start::default() };
    if tty { start.with_terminal(terminal::size()) } else { start }
}

/// With `--json` the whole result is one document; with `--detach` the result is that of the start. Standard input is not
/// passed on.
async fn exec_whole(client: &Client, output: &Output, id: &str, exec: args::Exec) -> Result<u8, Error> {
    if exec.argv.is_empty() {
        let option = if exec.detach { "--detach" } else { "--json" };
        return Err(Error::usage(format!("with {option} a command is needed: icebox exec {option} BOX -- ARGV")));
    }
    let mut argv = exec.argv;
    if exec.detach {
        argv = ["sh", "-c", DETACH, "sh"].map(str::to_owned).into_iter().chain(argv).collect();
    }
    if !exec.env.is_empty() {
        // The request has no place for variables; env(1) of the box sets them.
        let variables = exec.env.into_iter().map(|(name, value)| format!("{name}={value}"));
        argv = std::iter::once("env".to_owned()).chain(variables).chain(argv).collect();
    }
    let mut body = Map::from_iter([("command".to_owned(), json!(argv))]);
    if let Some(workdir) = exec.workdir {
        body.insert("folder".to_owned(), absolute(&workdir).into());
    }
    let request = client.request(Method::POST, &["v2", "box", id, "exec"], Patience::Work).json(&body);
    let answer = client.json(request).await?;
    if output.is_json() {
        output.json(&answer)?;
        return exit_code(&read(answer)?);
    }
    let result: ExecResult = read(answer)?;
    eprint!("{}", result.error);
    exit_code(&result)
}

/// `icebox code`.
pub(crate) async fn code(client: &Client, output: &Output, code: args::Code) -> Result<u8, Error> {
    let text = read_code(code.file.as_deref())?;
    let id = client.find(&code.name).await?.id;
    let mut body = json!({ "code": text, "language": code.language.word() });
    if let Some(seconds) = code.timeout {
        body["timeout"] = Value::from(seconds.saturating_mul(1_000));
    }
    if let Some(workdir) = code.workdir {
        body["folder"] = Value::from(absolute(&workdir));
    }
    let request = client.request(Method::POST, &["v2", "box", &id, "code"], Patience::Work).json(&body);
    let answer = client.json(request).await?;
    if output.is_json() {
        output.json(&answer)?;
        return exit_code(&read(answer)?);
    }
    let result: ExecResult = read(answer)?;
    output.text(&result.output)?;
    eprint!("{}", result.error);
    exit_code(&result)
}

fn read_code(file: Option<&std::path::Path>) -> Result<String, Error> {
    let mut text = String::new();
    let (name, outcome) = match file {
        Some(path) => (
            path.display().to_string(),
            std::fs::File::open(path).and_then(|file| file.take(CODE_BYTES_MAX + 1).read_to_string(&mut text)),
        ),
        None => {
            ("standard input".to_owned(), std::io::stdin().lock().take(CODE_BYTES_MAX + 1).read_to_string(&mut text))
        }
    };
    let length = outcome.map_err(|cause| Error::io("read the code", &name, cause))?;
    if length as u64 > CODE_BYTES_MAX {
        return Err(Error::usage(format!(
            "{name} holds more than {CODE_BYTES_MAX} bytes of code; copy it into the box"
        )));
    }
    Ok(text)
}

fn exit_code(result: &ExecResult) -> Result<u8, Error> {
    let code = result.exit_code.ok_or_else(|| Error::protocol("run the command", "the answer has no exit code"))?;
    u8::try_from(code)
        .map_err(|_| Error::protocol("run the command", format!("the server reported {code} as its exit code")))
}

/// Reads standard input in a thread of its own: a read of a terminal can not be called off, and a thread, unlike a task
/// of the runtime, is simply left behind at the end. The channel is short, so a command that does not read makes us stop.
fn read_stdin() -> Result<Receiver<Vec<u8>>, Error> {
    let (sender, receiver) = channel(STDIN_CHUNKS_MAX);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || copy_stdin(rustix::stdio::stdin(), &sender))
        .map_err(|cause| Error::io("start a thread", "standard input", cause))?;
    Ok(receiver)
}

fn copy_stdin(input: impl AsFd, sender: &Sender<Vec<u8>>) {
    let mut buffer = vec![0; STDIN_CHUNK_BYTES];
    loop {
        match rustix::io::read(&input, &mut buffer[..]) {
            Ok(0) => return,
            Ok(count) => {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => {
                report(&Error::io("read", "standard input", cause.into()));
                return;
            }
        }
    }
}

/// The signals that are passed on to the command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
    /// Only with a terminal.
    resize: Option<Signal>,
}

impl Signals {
    fn catch(tty: bool) -> Result<Self, Error> {
        let one =
            |kind: SignalKind| signal(kind).map_err(|cause| Error::io("catch a signal", kind.as_raw_value(), cause));
        Ok(Self {
            interrupt: one(SignalKind::interrupt())?,
            terminate: one(SignalKind::terminate())?,
            hangup: one(SignalKind::hangup())?,
            quit: one(SignalKind::quit())?,
            user1: one(SignalKind::user_defined1())?,
            user2: one(SignalKind::user_defined2())?,
            resize: if tty { Some(one(SignalKind::window_change())?) } else { None },
        })
    }

    /// Passes signals on; returns when the person has asked often enough for the end. The session is then dropped,
    /// and with its socket the command.
    async fn forward(mut self, sender: Sender<Control>) -> u8 {
        let (mut interrupts, mut terminations) = (0, 0);
        loop {
            let name = tokio::select! {
                _ = self.interrupt.recv() => { interrupts += 1; "INT" }
                _ = self.terminate.recv() => { terminations += 1; "TERM" }
                _ = self.hangup.recv() => { terminations += 1; "HUP" }
                _ = self.quit.recv() => "QUIT",
                _ = self.user1.recv() => "USR1",
                _ = self.user2.recv() => "USR2",
                () = resized(&mut self.resize) => {
                    // A full queue means that the server does not read; the next resize brings the size up to date.
                    let _ = sender.try_send(Control::Resize(terminal::size()));
                    continue;
                }
            };
            if interrupts >= INTERRUPTS_MAX {
                return EXIT_INTERRUPTED;
            }
            if terminations >= TERMINATIONS_MAX {
                return EXIT_TERMINATED;
            }
            // A full queue means that the server does not read; the counts above still lead out.
            let _ = sender.try_send(Control::Signal(name));
        }
    }
}

async fn resized(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec_args(argv: &[&str], workdir: Option<&str>) -> args::Exec {
        args::Exec {
            name: "b".into(),
            workdir: workdir.map(str::to_owned),
            env: vec![("TERM".into(), "mine".into())],
            tty: false,
            no_tty: false,
            no_stdin: false,
            detach: false,
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn no_command_is_a_login_shell_at_home() {
        let start = start_frame(exec_args(&[], None), false, None);
        assert_eq!(start.argv, ["bash", "-l"]);
        assert_eq!(start.cwd, HOME);
        assert!(!start.tty);
    }

    #[test]
    fn the_terminal_type_goes_along_and_can_be_overridden() {
        let start = start_frame(exec_args(&["top"], Some("src")), true, Some("xterm".into()));
        assert_eq!(start.env, ["TERM=xterm", "TERM=mine"]);
        assert_eq!(start.cwd, "/workspace/home/src");
        let start = start_frame(exec_args(&["top"], None), false, Some("xterm".into()));
        assert_eq!(start.env, ["TERM=mine"]);
    }

    #[test]
    fn a_missing_exit_code_is_no_success() {
        let result = |code| ExecResult { exit_code: code, ..ExecResult::default() };
        assert!(exit_code(&result(None)).is_err());
        assert!(exit_code(&result(Some(-1))).is_err());
        assert_eq!(exit_code(&result(Some(3))).ok(), Some(3));
    }

    #[tokio::test]
    async fn standard_input_arrives_whole_and_ends() {
        let mut file = tempfile::tempfile().expect("a file");
        let content: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        std::io::Write::write_all(&mut file, &content).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let (sender, mut receiver) = channel(STDIN_CHUNKS_MAX);
        let thread = std::thread::spawn(move || copy_stdin(&file, &sender));
        let mut got = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            assert!(chunk.len() <= STDIN_CHUNK_BYTES);
            got.extend(chunk);
        }
        thread.join().expect("no panic");
        assert!(got == content);
    }
}
