"""What a user of the PyPI client does with a box. Run by tests/sdk_pypi.rs with the interpreter of the environment that
the client is installed in; every step is an assertion, and the last line of the output is SCENARIO PASSED."""

import base64
import faulthandler
import gc
import os
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version

from upstash_box import Box, BoxError, EphemeralBox

# A scenario that hangs says where, before the test runner ends it.
faulthandler.dump_traceback_later(180, exit=True)
# The collector of cycles runs between the steps only. The client keeps an unread stream in a cycle, and the lock of httpx's
# connection pool is not re-entrant: a collection within a request that closes such a stream waits for itself for ever.
gc.disable()

assert version("upstash-box") == "0.4.0", "the scenario was written for this client"


def step(function):
    start = time.perf_counter()
    try:
        function()
    except BaseException as error:
        print(f"step {function.__name__} failed: {error!r}", flush=True)
        raise
    gc.collect()
    print(f"{function.__name__}: {(time.perf_counter() - start) * 1000:.1f} ms", flush=True)


def refused(statuses, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except BoxError as error:
        assert error.status_code in statuses, f"status {error.status_code}: {error}"
        assert str(error) and not str(error).startswith("Request failed with status"), f"no error text: {error}"
        return
    raise AssertionError("should have been refused")


NAME = f"pypi-scenario-{os.getpid()}"
AWAKE = ("idle", "running")
box = None


def create():
    global box
    box = Box.create(name=NAME, size="small", labels=["team:icebox"], env={"GREETING": "hello from env"})
    assert box.size == "small" and box.keep_alive is False and box.cwd == "/workspace/home"
    assert box.get_status()["status"] in AWAKE


def exec_command():
    run = box.exec.command("echo out; echo err >&2; id -un; pwd; echo $GREETING")
    assert run.status == "completed" and run.exit_code == 0
    assert run.stdout.split("\n")[:4] == ["out", "boxuser", "/workspace/home", "hello from env"], run.stdout
    assert run.stderr.strip() == "err"
    failed = box.exec.command("echo nope >&2; exit 3")
    assert (failed.exit_code, failed.status, failed.result.strip()) == (3, "failed", "nope")
    killed = box.exec.command("kill -9 $$")
    assert killed.exit_code == 137, killed.exit_code


def exec_code():
    js = box.exec.code(lang="js", code="console.log(6 * 7)")
    assert js.exit_code == 0 and js.result.strip() == "42", js.stderr
    python = box.exec.code(lang="python", code="print('py', sum(range(10)))")
    assert python.result.strip() == "py 45"
    slow = box.exec.code(lang="js", code="for (;;) {}", timeout=700)
    assert slow.exit_code != 0 and slow.stderr


def exec_stream():
    run = box.exec.stream("for i in 1 2 3; do echo line $i; done; exit 4")
    output, exit_chunk = "", None
    for chunk in run:
        if chunk.type == "output":
            output += chunk.data
        elif chunk.type == "exit":
            exit_chunk = chunk
    assert "line 1\nline 2\nline 3\n" in output, output
    assert exit_chunk.exit_code == 4 and exit_chunk.cpu_ns > 0
    assert run.status == "failed"
    # Nothing is added to output that ends in the middle of a line, and no character is cut.
    odd = box.exec.stream("printf 'a→€🎉'")
    assert "".join(c.data for c in odd if c.type == "output") == "a→€🎉"
    assert odd.exit_code == 0
    code = box.exec.stream_code(lang="python", code="print('streamed')")
    assert "".join(c.data for c in code if c.type == "output").strip() == "streamed"
    assert code.exit_code == 0


def cd():
    box.exec.command("mkdir -p project/src")
    box.cd("project/src")
    assert box.exec.command("pwd").result.strip() == "/workspace/home/project/src"
    try:
        box.cd("/no/such/place")
        raise AssertionError("cd to nowhere succeeded")
    except BoxError as error:
        assert "No such file or directory" in str(error)
    box.cd("/workspace/home")


def files():
    box.files.write(path="notes/hello.txt", content="Grüße\nzwei\n")
    assert box.files.read("notes/hello.txt") == "Grüße\nzwei\n"
    raw = bytes(range(256)) * 40
    box.files.write(path="/tmp/raw.bin", content=base64.b64encode(raw).decode(), encoding="base64")
    assert base64.b64decode(box.files.read("/tmp/raw.bin", encoding="base64")) == raw
    assert base64.b64decode(box.files.read("/tmp/raw.bin", encoding="base64", offset=250, length=12)) == raw[250:262]
    assert box.files.read("notes/hello.txt", offset=0, length=0) == ""
    refused((404,), box.files.read, "missing.txt")
    names = {e.name: e for e in box.files.list("notes")}
    assert set(names) == {"hello.txt"} and names["hello.txt"].is_dir is False
    assert names["hello.txt"].size == len("Grüße\nzwei\n".encode())
    assert any(e.name == "notes" and e.is_dir for e in box.files.list())


def files_stat_mkdir_rename_remove():
    stat = box.files.stat("notes/hello.txt")
    assert stat.type == "file" and stat.size == len("Grüße\nzwei\n".encode()) and stat.inode > 0
    box.files.write(path="notes/hello.txt", content="changed")
    assert box.files.stat("notes/hello.txt").version != stat.version
    box.exec.command("ln -s hello.txt notes/link")
    assert box.files.stat("notes/link").type == "symlink"
    assert box.files.stat("notes/link", follow=True).type == "file"
    box.files.mkdir("made/below/here", parents=True)
    box.files.mkdir("made/below/here", parents=True)
    refused((400, 409), box.files.mkdir, "made")
    refused((404,), box.files.mkdir, "absent/child")
    assert box.files.stat("made/below").type == "directory"
    box.files.rename("notes/hello.txt", "made/moved.txt")
    assert box.files.read("made/moved.txt") == "changed"
    refused((404,), box.files.rename, "notes/hello.txt", "made/other.txt")
    refused((400, 409), box.files.remove, "made")
    box.files.remove("made", recursive=True)
    refused((404,), box.files.stat, "made")


def files_upload_download():
    os.makedirs("up", exist_ok=True)
    for name, content in (("one.txt", b"one"), ("two.bin", b"\x00\xff" * 100_000)):
        with open(f"up/{name}", "wb") as file:
            file.write(content)
    box.files.upload(
        [
            {"path": "up/one.txt", "destination": "uploads/one.txt"},
            {"path": "up/two.bin", "destination": "uploads/two.bin"},
        ]
    )
    assert box.exec.command("cat uploads/one.txt; stat -c %s uploads/two.bin").stdout == "one200000\n"
    box.files.download(folder="uploads")
    with open("uploads/two.bin", "rb") as file:
        assert file.read() == b"\x00\xff" * 100_000


def pause_and_wake():
    box.exec.command("nohup sleep 1000 >/dev/null 2>&1 & echo $! > sleeper.pid")
    box.pause()
    assert box.get_status()["status"] == "paused"
    assert box.exec.command("kill -0 $(cat sleeper.pid) && echo alive").result.strip() == "alive"
    assert box.get_status()["status"] in AWAKE
    box.pause()
    box.resume()
    assert box.get_status()["status"] in AWAKE


def list_get_get_by_name():
    mine = [b for b in Box.list() if b.id == box.id]
    assert len(mine) == 1 and mine[0].name == NAME
    assert [b.id for b in Box.list(label="team:icebox")] == [box.id]
    assert Box.list(label="team:other") == []
    with Box.get(box.id) as again:
        assert again.exec.command("echo again").result == "again\n"
    with Box.get_by_name(NAME) as named:
        assert named.id == box.id


def logs_and_runs():
    run = box.exec.command("echo marker-of-the-run")
    assert box.logs() and run.logs()
    assert len(box.logs(offset=0, limit=3)) <= 3
    runs = box.list_runs()
    assert runs[0].prompt == "sh -c echo marker-of-the-run" and runs[0].type == "shell"
    assert runs[0].status == "completed" and runs[0].cpu_ns > 0 and runs[0].box_id == box.id


def cancel():
    run = box.exec.stream("echo started; sleep 4711")
    for chunk in run:
        if chunk.type == "output" and "started" in chunk.data:
            break
    run.cancel()
    assert run.status == "cancelled"
    deadline = time.monotonic() + 60
    while box.exec.command("ps -eo args | grep '[s]leep 4711'").exit_code == 0:
        assert time.monotonic() < deadline, "a cancelled stream goes on"


def exec_session():
    out, err = [], []
    with box.exec.session(
        argv=["sh", "-c", "echo ready; echo warn >&2; read line; echo got $line $EXTRA; exit 6"],
        env=["EXTRA=more"],
        on_stdout=out.append,
        on_stderr=err.append,
    ) as session:
        assert session.pid > 1
        session.write("hello\n")
        assert session.wait(timeout=20) == 6
    assert b"".join(out) == b"ready\ngot hello more\n", out
    assert b"".join(err) == b"warn\n", err
    out = []
    with box.exec.session(cmd="cat", on_stdout=out.append) as session:
        session.write("to cat")
        session.end_stdin()
        assert session.wait(timeout=20) == 0
    assert b"".join(out) == b"to cat"
    out = []
    command = "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 0.05; done"
    with box.exec.session(cmd=command, tty=True, rows=33, cols=101, on_stdout=out.append) as session:
        deadline = time.monotonic() + 20
        while b"33 101" not in b"".join(out) and time.monotonic() < deadline:
            time.sleep(0.01)
        session.resize(44, 120)
        assert session.wait(timeout=20) == 3
    assert b"33 101" in b"".join(out) and b"44 120" in b"".join(out), out
    with box.exec.session(cmd="sleep 1000 & sleep 1000; wait") as session:
        session.kill("TERM")
        assert session.wait(timeout=20) == 143
    out = []
    with box.exec.session(cmd="trap '' TERM; echo armed; while :; do sleep 1; done", on_stdout=out.append) as session:
        # A TERM that comes before the trap would end the shell at once.
        deadline = time.monotonic() + 20
        while b"armed" not in b"".join(out) and time.monotonic() < deadline:
            time.sleep(0.01)
        session.terminate(grace_ms=300)
        assert session.wait(timeout=20) == 137
    session = box.exec.session(argv=["sleep", "4321"])
    session.close()
    deadline = time.monotonic() + 20
    while box.exec.command("ps -eo args | grep '[s]leep 4321'").exit_code == 0:
        assert time.monotonic() < deadline, "the process outlives its session"
    try:
        box.exec.session(argv=["/no/such/program"])
        raise AssertionError("a missing program was started")
    except BoxError as error:
        assert "exec-session error: /no/such/program: command not found" in str(error), error
    for _ in range(5):
        out = []
        with box.exec.session(argv=["seq", "1", "50000"], on_stdout=out.append) as session:
            try:
                for _ in range(50):
                    session.write("x" * 10_000)
            except BoxError:
                pass  # the command has ended before
            assert session.wait(timeout=60) == 0
        assert b"".join(out) == b"".join(b"%d\n" % n for n in range(1, 50_001)), "output was cut"


def visit(url, **headers):
    # As the client is told, with the resolver of this machine.
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def public_urls():
    box.exec.command("mkdir -p www; echo from the box > www/index.html")
    box.exec.command("setsid python3 -m http.server 8000 --bind 127.0.0.1 --directory www >/dev/null 2>&1 &")
    box.exec.command("until curl -s http://127.0.0.1:8000/ >/dev/null; do sleep 0.05; done")
    free = box.get_public_url(8000)
    assert free.port == 8000 and free.token is None and free.username is None and free.password is None
    assert visit(free.url) == (200, b"from the box\n")
    both = box.get_public_url(8000, bearer_token=True, basic_auth=True)
    assert both.username == "user" and both.token and both.password and both.token != both.password
    assert visit(both.url)[0] == 401
    basic = base64.b64encode(f"user:{both.password}".encode()).decode()
    box.pause()
    assert visit(both.url)[0] == 401 and box.get_status()["status"] == "paused"
    assert visit(both.url, Authorization=f"Bearer {both.token}") == (200, b"from the box\n")
    assert visit(both.url, Authorization=f"Basic {basic}") == (200, b"from the box\n")
    listed = box.list_public_urls()["public_urls"]
    assert [(u.port, u.url, u.bearer_token, u.basic_auth) for u in listed] == [(8000, both.url, True, True)]
    assert listed[0].id == f"{box.id}-8000" and abs(listed[0].created_at - time.time()) < 600
    box.delete_public_url(8000)
    assert visit(both.url)[0] == 404


def snapshots():
    box.exec.command("echo of then > snapped.txt")
    first = box.snapshot(name="before")
    assert (first.status, first.name, first.box_id) == ("ready", "before", box.id), first
    assert first.size_bytes > 0 and abs(first.created_at - time.time()) < 600, first
    box.pause()
    second = box.snapshot(name="asleep")
    assert box.get_status()["status"] == "paused"
    assert [s.id for s in box.list_snapshots()] == [first.id, second.id]
    box.exec.command("echo of now > snapped.txt")
    copy = Box.from_snapshot(first.id, env={"EXTRA": "1"}, size="medium")
    assert copy.size == "medium"
    assert copy.files.read("snapped.txt") == "of then\n"
    assert copy.exec.command("echo $EXTRA").result.strip() == "1"
    short = EphemeralBox.from_snapshot(second.id, ttl=600)
    assert short.expires_at > time.time()
    of_short = short.snapshot(name="of an ephemeral box")
    assert [s.id for s in short.list_snapshots()] == [of_short.id]
    short.delete_snapshot(of_short.id)
    assert short.list_snapshots() == []
    short.delete()
    copy.delete()
    box.delete_snapshot(first.id)
    refused((404,), box.delete_snapshot, first.id)
    refused((404,), Box.from_snapshot, first.id)
    third = box.snapshot(name="third")
    assert Box.delete_snapshots(snapshot_ids=[third.id]) == {"deleted": 1}
    assert [s.id for s in box.list_snapshots()] == [second.id]
    assert Box.delete_snapshots() == {"deleted": 1}
    assert box.list_snapshots() == []


def errors():
    refused((401,), Box.get, box.id, api_key="box_wrong")
    refused((401,), Box.create, api_key="box_wrong")
    refused((401,), Box.list, api_key="box_wrong")
    refused((404,), Box.get, "no-such-box-1")
    refused((400,), Box.create, size="gigantic")
    refused((400,), box._request, "POST", f"/v2/box/{box.id}/exec", body={"command": "not an argv"})
    # The answer comes before the body was read; the next call uses the same connection.
    refused((413,), box._request, "POST", f"/v2/box/{box.id}/exec", body={"command": ["x" * 20_000_000]})
    assert box.exec.command("echo still").result == "still\n"
    refused((400,), box._request, "POST", f"/v2/box/{box.id}/code", body={"code": "1", "language": "cobol"})


def delete():
    second = Box.create()
    Box.delete_boxes(box_ids=[second.id])
    refused((404,), Box.get, second.id)
    box.delete()
    refused((404,), Box.get, box.id)
    assert box.id not in [b.id for b in Box.list()]


for function in (
    create,
    exec_command,
    exec_code,
    exec_stream,
    cd,
    files,
    files_stat_mkdir_rename_remove,
    files_upload_download,
    pause_and_wake,
    list_get_get_by_name,
    logs_and_runs,
    cancel,
    exec_session,
    public_urls,
    snapshots,
    errors,
    delete,
):
    step(function)
print("SCENARIO PASSED", flush=True)
sys.exit(0)
