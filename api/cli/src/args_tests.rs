//! Tests of what can be typed.

use clap::CommandFactory;

use super::*;

fn parse(words: &[&str]) -> Verb {
    Args::try_parse_from(words).unwrap_or_else(|refused| panic!("{words:?}: {refused}")).verb
}

fn refused(words: &[&str]) -> String {
    match Args::try_parse_from(words) {
        Ok(args) => panic!("{words:?} was taken as {args:?}"),
        Err(refused) => refused.to_string(),
    }
}

#[test]
fn the_definition_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn create_takes_every_option() {
    let Verb::Create(create) = parse(&[
        "icebox",
        "create",
        "--name",
        "b",
        "--size",
        "large",
        "--label",
        "x",
        "--label",
        "y",
        "-e",
        "A=1=2",
        "--idle",
        "30s",
        "--init-command",
        "true",
    ]) else {
        panic!("not create");
    };
    assert_eq!(create.name.as_deref(), Some("b"));
    assert_eq!(create.size, Some(crate::args_create::Size::Large));
    assert_eq!(create.labels, ["x", "y"]);
    assert_eq!(create.env, [("A".to_owned(), "1=2".to_owned())]);
    assert_eq!(create.idle, Some(30));
    assert_eq!(create.init_command.as_deref(), Some("true"));
}

#[test]
fn create_refuses_what_does_not_go_together() {
    assert!(refused(&["icebox", "create", "--idle", "1h", "--keep-alive"]).contains("cannot be used with"));
    assert!(refused(&["icebox", "create", "--ttl", "1h"]).contains("--ephemeral"));
    assert!(refused(&["icebox", "create", "--size", "huge"]).contains("small"));
    assert!(refused(&["icebox", "create", "-e", "=x"]).contains("NAME=VALUE"));
    assert!(refused(&["icebox", "create", "-e", "ICEBOX_TEST_NOT_SET_ANYWHERE"]).contains("not set here"));
}

#[test]
fn exec_options_come_before_the_dashes_and_the_command_after_them() {
    let Verb::Exec(exec) =
        parse(&["icebox", "exec", "b", "-w", "src", "-e", "A=1", "-T", "--", "ls", "-l", "--", "-t"])
    else {
        panic!("not exec");
    };
    assert_eq!(exec.name, "b");
    assert_eq!(exec.workdir.as_deref(), Some("src"));
    assert_eq!(exec.argv, ["ls", "-l", "--", "-t"]);
    assert!(exec.no_tty && !exec.tty);
}

#[test]
fn exec_needs_the_dashes() {
    refused(&["icebox", "exec", "b", "ls"]);
}

#[test]
fn exec_without_a_command_is_a_shell() {
    let Verb::Exec(exec) = parse(&["icebox", "exec", "b"]) else { panic!("not exec") };
    assert!(exec.argv.is_empty());
}

#[test]
fn an_empty_argument_stays_an_argument() {
    let Verb::Exec(exec) = parse(&["icebox", "exec", "b", "--", "printf", ""]) else { panic!("not exec") };
    assert_eq!(exec.argv, ["printf", ""]);
}

#[test]
fn rm_never_takes_its_box_from_the_environment() {
    let command = Args::command();
    let rm = command.find_subcommand("rm").expect("rm exists");
    assert!(rm.get_arguments().all(|argument| argument.get_env().is_none()));
    assert!(refused(&["icebox", "rm"]).contains("BOX"));
}

#[test]
fn aliases_of_the_other_world_work() {
    assert!(matches!(parse(&["icebox", "list"]), Verb::Ls(_)));
    assert!(matches!(parse(&["icebox", "pause", "a", "b"]), Verb::Freeze { boxes } if boxes == ["a", "b"]));
    assert!(matches!(parse(&["icebox", "resume", "a"]), Verb::Wake { boxes } if boxes == ["a"]));
    assert!(matches!(parse(&["icebox", "restart", "a"]), Verb::Restart { boxes } if boxes == ["a"]));
    assert!(matches!(parse(&["icebox", "reclaim", "a"]), Verb::Reclaim { name } if name == "a"));
    assert!(matches!(parse(&["icebox", "delete", "-f", "a"]), Verb::Rm(remove) if remove.force));
}

#[test]
fn global_options_stand_anywhere() {
    let args = Args::try_parse_from(["icebox", "ls", "--json", "--url", "http://h:1", "--key", "k"]).expect("parses");
    assert!(args.global.json);
    assert_eq!(args.global.url.as_deref(), Some("http://h:1"));
    assert_eq!(args.global.key.as_deref(), Some("k"));
    assert_eq!(args.global.run_dir, std::path::Path::new("/run/icebox"));
}

#[test]
fn idle_is_for_a_box_or_the_account() {
    assert!(
        matches!(parse(&["icebox", "idle", "10m", "b"]), Verb::Idle(idle) if idle.time == IdleTime(Some(600)) && !idle.account)
    );
    assert!(matches!(parse(&["icebox", "idle", "1h", "--account"]), Verb::Idle(idle) if idle.account));
}

#[test]
fn idle_can_go_back_to_the_default() {
    assert!(matches!(parse(&["icebox", "idle", "default", "b"]), Verb::Idle(idle) if idle.time == IdleTime(None)));
}

#[test]
fn an_interval_of_zero_is_refused() {
    assert!(refused(&["icebox", "top", "--interval", "0"]).contains("at least 1s"));
}

#[test]
fn completions_exist_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let Verb::Completions { shell } = parse(&["icebox", "completions", shell]) else { panic!("not completions") };
        assert!(super::super::completions(shell).contains("icebox"), "{shell}");
    }
}

#[test]
fn a_url_is_of_a_port() {
    let Verb::Url(url) = parse(&["icebox", "url", "build", "65535", "--bearer", "--basic"]) else { panic!("not url") };
    assert_eq!((url.name.as_str(), url.port, url.bearer, url.basic, url.remove), ("build", 65535, true, true, false));
    for port in ["0", "65536", "http", "-1"] {
        refused(&["icebox", "url", "build", port]);
    }
    assert!(refused(&["icebox", "url", "build", "80", "--remove", "--bearer"]).contains("cannot be used with"));
}
