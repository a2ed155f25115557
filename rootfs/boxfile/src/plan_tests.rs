//! Plans of whole Boxfiles, with images and URLs that are made up.

use super::*;
use crate::tree::tests::Mem;

/// A world with some images and a file behind a URL.
#[derive(Default)]
struct World {
    asked: Vec<String>,
}

impl Inputs for World {
    fn image(&mut self, reference: &str) -> Result<Base, String> {
        self.asked.push(reference.to_owned());
        let config = match reference {
            "debian" | "debian:12" => r#"{"config":{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv"}}"#,
            "onbuild" => r#"{"config":{"OnBuild":["COPY a.txt /trigger/","RUN <<E\nset $X\nE"],"User":"web"}}"#,
            other => return Err(format!("there is no image '{other}'")),
        };
        Ok(Base { id: format!("id-of-{reference}"), config: serde_json::from_str(config).expect("a configuration") })
    }

    fn fetch(&mut self, url: &str, checksum: Option<&str>) -> Result<Fetched, String> {
        self.asked.push(url.to_owned());
        let digest = checksum.unwrap_or("sha256:00").to_owned();
        Ok(Fetched { digest, size: 3, mtime: 7 })
    }
}

fn context() -> Mem {
    Mem::of(&["a.txt=aa", "b.txt=bb", "dir/c=c", "dir/skip.md=d"])
}

fn planned(text: &str, args: &[(&str, &str)], target: Option<&str>) -> Result<Plan, Error> {
    let boxfile = Boxfile::read("Boxfile", text)?;
    let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = Options { target: target.map(str::to_owned), args };
    plan(&boxfile, &context(), &mut World::default(), &options)
}

fn last(text: &str) -> Stage {
    planned(text, &[], None).unwrap_or_else(|error| panic!("{text}: {error}")).stages.pop().expect("a stage")
}

fn run_of(stage: &Stage) -> &Run {
    let mut runs =
        stage.steps.iter().filter_map(|step| if let Action::Run(run) = &step.action { Some(run) } else { None });
    runs.next_back().expect("a RUN")
}

#[test]
fn the_configuration_follows_the_instructions() {
    for (text, wanted) in [
        (
            "ENV A=1 B=$A\nENV C=$A",
            r#"{"Env":["PATH=/bin","LANG=C","A=1","B=","C=1"],"Cmd":["bash"],"WorkingDir":"/srv"}"#,
        ),
        ("ENV LANG=${LANG}.UTF-8", r#"{"Env":["PATH=/bin","LANG=C.UTF-8"],"Cmd":["bash"],"WorkingDir":"/srv"}"#),
        ("ENV A b  c", r#"{"Env":["PATH=/bin","LANG=C","A=b  c"],"Cmd":["bash"],"WorkingDir":"/srv"}"#),
        ("ENTRYPOINT [\"x\"]", r#"{"Env":["PATH=/bin","LANG=C"],"Entrypoint":["x"],"WorkingDir":"/srv"}"#),
        (
            "CMD y\nENTRYPOINT x",
            r#"{"Env":["PATH=/bin","LANG=C"],"Entrypoint":["/bin/sh","-c","x"],"Cmd":["/bin/sh","-c","y"],"WorkingDir":"/srv"}"#,
        ),
        (
            "SHELL [\"/bin/bash\",\"-ec\"]\nCMD y",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["/bin/bash","-ec","y"],"Shell":["/bin/bash","-ec"],"WorkingDir":"/srv"}"#,
        ),
        ("ENTRYPOINT []\nCMD []", r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":[],"WorkingDir":"/srv"}"#),
        ("WORKDIR a\nWORKDIR b/../c", r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv/a/c"}"#),
        ("ARG D=/x\nWORKDIR $D/y", r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/x/y"}"#),
        (
            "ARG P=9\nEXPOSE 80 53/udp $P 7-8 127.0.0.1:1:2",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv","ExposedPorts":{"80/tcp":{},"53/udp":{},"9/tcp":{},"7/tcp":{},"8/tcp":{},"2/tcp":{}}}"#,
        ),
        (
            "LABEL a=1 b=\"x y\" \\\n c='z'",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv","Labels":{"a":"1","b":"x y","c":"z"}}"#,
        ),
        (
            "USER web:staff\nSTOPSIGNAL SIGINT\nVOLUME /a [b]\nVOLUME [\"/c d\"]",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv","User":"web:staff","StopSignal":"SIGINT","Volumes":{"/a":{},"[b]":{},"/c d":{}}}"#,
        ),
        (
            "HEALTHCHECK --interval=1m --retries=2 CMD x y",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv","Healthcheck":{"Test":["CMD-SHELL","x y"],"Interval":60000000000,"Retries":2}}"#,
        ),
        (
            "ONBUILD RUN x\nONBUILD COPY <<E /x\ny\nE\n",
            r#"{"Env":["PATH=/bin","LANG=C"],"Cmd":["bash"],"WorkingDir":"/srv","OnBuild":["RUN x","COPY <<E /x\ny\nE"]}"#,
        ),
    ] {
        let config = serde_json::to_value(last(&format!("FROM debian\n{text}")).config).expect("JSON");
        let wanted: serde_json::Value = serde_json::from_str(wanted).expect("JSON");
        assert_eq!(config["config"], wanted, "{text}");
    }
    assert_eq!(last("FROM scratch\nMAINTAINER A B").config.author.as_deref(), Some("A B"));
}

#[test]
fn arguments_have_their_scopes() {
    let env = |text: &str, args: &[(&str, &str)]| {
        let plan = planned(text, args, None).unwrap_or_else(|error| panic!("{text}: {error}"));
        let stage = plan.stages.last().expect("a stage");
        run_of(stage).env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    for (text, args, wanted) in [
        ("FROM debian\nARG A=1\nRUN x", vec![], "A=1 PATH=/bin LANG=C"),
        ("FROM debian\nARG A=1\nRUN x", vec![("A", "2")], "A=2 PATH=/bin LANG=C"),
        ("FROM debian\nARG A\nRUN x", vec![], "PATH=/bin LANG=C"),
        ("ARG A=1\nFROM debian\nRUN x", vec![], "PATH=/bin LANG=C"),
        ("ARG A=1\nFROM debian\nARG A\nRUN x", vec![], "A=1 PATH=/bin LANG=C"),
        ("ARG A=1\nARG B=${A}2\nFROM debian\nARG B\nRUN x", vec![], "B=12 PATH=/bin LANG=C"),
        ("FROM debian\nARG A=1\nENV A=3\nRUN x", vec![("A", "2")], "A=3 PATH=/bin LANG=C"),
        ("FROM debian\nARG A=1 B=$A\nRUN x", vec![], "A=1 B=1 PATH=/bin LANG=C"),
        ("FROM debian AS a\nARG A=1\nFROM a\nRUN x", vec![], "PATH=/bin LANG=C"),
        ("FROM debian\nRUN x", vec![("http_proxy", "p")], "PATH=/bin LANG=C http_proxy=p"),
        ("FROM scratch\nRUN [\"/x\"]", vec![], &format!("PATH={}", crate::DEFAULT_PATH)),
    ] {
        assert_eq!(env(text, &args), wanted, "{text}");
    }
    let plan = planned("ARG V=12\nFROM debian:$V\n", &[], None).expect("an image");
    assert_eq!(plan.stages[0].from, From::Image("id-of-debian:12".to_owned()));
    let plan = planned("FROM debian", &[("NOPE", "1"), ("HTTP_PROXY", "p")], None).expect("a plan");
    assert_eq!(plan.warnings, ["no ARG asks for the build argument NOPE"]);
}

#[test]
fn commands_have_three_forms() {
    for (text, wanted) in [
        ("RUN echo  $X", vec!["/bin/sh", "-c", "echo  $X"]),
        ("RUN [\"echo\", \"$X\"]", vec!["echo", "$X"]),
        ("RUN <<E\na\n\tb\nE\n", vec!["/bin/sh", "-c", "a\n\tb\n"]),
        ("RUN <<-E\n\ta\n\tE\n", vec!["/bin/sh", "-c", "a\n"]),
        ("RUN cat <<E >/x\na\nE\n", vec!["/bin/sh", "-c", "cat <<E >/x\na\nE"]),
        ("RUN cat <<-A <<B\n\ta\nA\nb\nB\n", vec!["/bin/sh", "-c", "cat <<-A <<B\n\ta\nA\nb\nB"]),
        ("SHELL [\"bash\", \"-c\"]\nRUN x \\\n  y", vec!["bash", "-c", "x   y"]),
        ("RUN <<E\n#!/bin/x\ny\nE\n", vec!["/dev/pipes/E"]),
    ] {
        let stage = last(&format!("FROM debian\n{text}"));
        assert_eq!(run_of(&stage).args, wanted, "{text}");
        assert_eq!(run_of(&stage).script.is_some(), wanted.len() == 1, "{text}");
    }
    let stage =
        last("FROM debian\nUSER web\nWORKDIR /w\nARG M=m\nRUN --network=none --mount=type=cache,target=c,id=$M x");
    let run = run_of(&stage);
    assert_eq!((run.user.as_str(), run.workdir.as_str(), run.network), ("web", "/w", Network::None));
    assert!(matches!(&run.mounts[..], [Mount::Cache { id, target, .. }] if id == "m" && target == "/w/c"));
}

#[test]
fn only_the_stages_that_the_target_needs_are_planned() {
    let text = "FROM debian AS a\nRUN 1\nFROM debian AS unused\nRUN 2\nFROM a AS b\nRUN 3\nFROM scratch AS c\nCOPY --from=b / /\n\
                COPY --from=0 /x /y\nFROM debian AS tail\nRUN 4";
    let names = |target: Option<&str>| {
        let plan = planned(text, &[], target).expect("a plan");
        plan.stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>().join(" ")
    };
    for (target, wanted) in
        [(Some("c"), "a b c"), (Some("B"), "a b"), (Some("unused"), "unused"), (None, "tail"), (Some("0"), "a")]
    {
        assert_eq!(names(target), wanted, "{target:?}");
    }
    for (text, wanted) in [
        ("FROM scratch\nCOPY --from=later / /\nFROM debian AS later\nFROM scratch\nCOPY --from=0 / /", "comes later"),
        ("FROM scratch AS me\nCOPY --from=me / /", "comes later"),
        ("FROM scratch\nCOPY --from=$x / /", "has a variable"),
        ("FROM scratch\nCOPY --from=nothing / /", "no image 'nothing'"),
        ("FROM nothing", "no image 'nothing'"),
        ("FROM $x", "empty"),
        ("FROM --platform=plan9/mips debian", "--platform=plan9/mips"),
        ("FROM debian\nCOPY none /x", "'none' is not in the context"),
        ("FROM debian\nCOPY http://x/y /x", "write ADD"),
        ("FROM debian\nADD https://h/r.git /x", "repository"),
        ("FROM debian\nADD --checksum=sha256:0 a.txt /x", "--checksum"),
        ("FROM debian\nEXPOSE x", "EXPOSE x"),
        ("FROM debian\nEXPOSE 9-1", "EXPOSE 9-1"),
        ("FROM debian\nSTOPSIGNAL x", "STOPSIGNAL x"),
        ("FROM debian\nCOPY --chmod=9 a.txt /x", "--chmod=9"),
        ("FROM debian\nWORKDIR ${x:?gone}", "gone"),
    ] {
        let error = planned(text, &[], None).expect_err(text).to_string();
        assert!(error.contains(wanted) && error.starts_with("Boxfile:"), "{text}: {error}");
    }
    assert!(planned("FROM debian", &[], Some("x")).is_err_and(|error| error.what.contains("no stage 'x'")));
    let own = format!("FROM --platform=$TARGETPLATFORM debian\nFROM --platform=linux/{} debian", crate::architecture());
    assert!(planned(&own, &[], None).is_ok());
}

#[test]
fn triggers_of_the_base_are_carried_out() {
    let stage = last("FROM onbuild\nARG X=1");
    assert!(stage.config.config.on_build.is_empty());
    assert!(matches!(&stage.steps[0].action, Action::Copy(copy) if copy.dest == "/trigger/"));
    assert_eq!(run_of(&stage).args[2], "set $X\n");
    let stage = last("FROM debian AS a\nONBUILD ENV T=1\nFROM a");
    assert!(stage.config.config.env.contains(&"T=1".to_owned()));
}

#[test]
fn here_documents_become_files() {
    let stage = last("FROM debian\nARG X=v\nCOPY <<a <<\"b\" /d/\n$X \"q\"\na\n$X\nb\n");
    let Action::Copy(copy) = &stage.steps[1].action else { panic!("no COPY") };
    let inline = |name: &str, text: &str| Source::Inline(name.to_owned(), text.to_owned());
    assert_eq!(copy.sources, [inline("a", "v \"q\"\n"), inline("b", "$X\n")]);
}

#[test]
fn keys_change_with_what_decides_the_result_and_with_nothing_else() {
    let key = |text: &str| last(text).key;
    let base = key("FROM debian\nRUN x");
    for (text, same) in [
        ("FROM debian\nRUN x", true),
        ("# a comment\nFROM debian AS name\n\nrun x", true),
        ("FROM debian\nLABEL a=b\nRUN x", true),
        ("FROM debian\nCMD y\nRUN x\nENV Z=1", true),
        ("FROM debian\nRUN y", false),
        ("FROM debian:12\nRUN x", false),
        ("FROM debian\nENV A=1\nRUN x", false),
        ("FROM debian\nARG A=1\nRUN x", false),
        ("FROM debian\nUSER web\nRUN x", false),
        ("FROM debian\nWORKDIR /w\nRUN x", false),
        ("FROM debian\nRUN --network=none x", false),
        ("FROM debian\nRUN [\"x\"]", false),
        ("FROM debian\nRUN y\nRUN x", false),
    ] {
        assert_eq!(key(text) == base, same, "{text}");
    }
    let of = |tree: &Mem, text: &str| {
        let boxfile = Boxfile::read("F", text).expect("a Boxfile");
        let plan = plan(&boxfile, tree, &mut World::default(), &Options::default()).expect("a plan");
        plan.stages.last().expect("a stage").key
    };
    let copy = "FROM debian\nCOPY dir /d/";
    let base = of(&context(), copy);
    for (tree, text, same) in [
        (Mem::of(&["dir/c=c", "dir/skip.md=d", "other=1"]), copy, true),
        (Mem::of(&["dir/c=X", "dir/skip.md=d"]), copy, false),
        (Mem::of(&["dir/c=c@755", "dir/skip.md=d"]), copy, false),
        (Mem::of(&["dir/d=c", "dir/skip.md=d"]), copy, false),
        (context(), "FROM debian\nCOPY dir /e/", false),
        (context(), "FROM debian\nCOPY --chown=1 dir /d/", false),
        (context(), "FROM debian\nCOPY --chmod=700 dir /d/", false),
        (context(), "FROM debian\nCOPY --exclude=*.md dir /d/", false),
    ] {
        assert_eq!(of(&tree, text) == base, same, "{text}");
    }
    // A change of a stage changes what copies from it.
    let from = |command: &str| key(&format!("FROM debian AS a\nRUN {command}\nFROM scratch\nCOPY --from=a /x /"));
    assert_ne!(from("1"), from("2"));
    // A checksum is enough for a URL; the query is no part of its name.
    let stage = last("FROM scratch\nADD --checksum=sha256:11 https://h.example/p/f.txt?q=1 /d/");
    let Action::Copy(copy) = &stage.steps[0].action else { panic!("no ADD") };
    assert!(
        matches!(&copy.sources[..], [Source::Url(name, fetched)] if name == "f.txt" && fetched.digest == "sha256:11")
    );
}
