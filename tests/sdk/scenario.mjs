// What a user of the npm client does with a box, in the order a session has. Run by tests/sdk_npm.rs; every step is an
// assertion, and the last line of the output is SCENARIO PASSED.
import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const sdk = join(process.env.ICEBOX_SDK_DIR, "node_modules/@upstash/box");
const version = createRequire(import.meta.url)(join(sdk, "package.json")).version;
assert.equal(version, "0.5.5", "the scenario was written for this client");
const { Box, BoxError, EphemeralBox } = await import(pathToFileURL(join(sdk, "dist/index.js")));

const step = async (name, body) => {
  const start = performance.now();
  try {
    await body();
  } catch (error) {
    console.error(`step "${name}" failed:`, error);
    process.exit(1);
  }
  console.log(`${name}: ${(performance.now() - start).toFixed(1)} ms`);
};
const refused = async (promise, statuses) => {
  const error = await promise.then(
    () => assert.fail("should have been refused"),
    (e) => e,
  );
  assert.ok(error instanceof BoxError, `not a BoxError: ${error}`);
  assert.ok(statuses.includes(error.statusCode), `status ${error.statusCode}: ${error.message}`);
  assert.ok(error.message && !/^Request failed with status/.test(error.message), `no error text: ${error.message}`);
  assert.notEqual(error.message, "[object Object]");
  return error;
};

const name = `npm-scenario-${process.pid}`;
let box;

await step("create", async () => {
  box = await Box.create({ name, size: "small", labels: ["team:icebox"], env: { GREETING: "hello from env" } });
  assert.match(box.id, /^[a-z0-9][a-z0-9-]*$/);
  assert.equal(box.size, "small");
  assert.equal(box.keepAlive, false);
  assert.equal(box.cwd, "/workspace/home");
  assert.ok(["idle", "running"].includes((await box.getStatus()).status));
});

await step("exec.command", async () => {
  const run = await box.exec.command("echo out; echo err >&2; id -un; pwd; echo $HOME; echo $GREETING");
  assert.equal(run.status, "completed");
  assert.equal(run.exitCode, 0);
  assert.deepEqual(run.stdout.trim().split("\n"), ["out", "boxuser", "/workspace/home", "/workspace/home", "hello from env"]);
  assert.equal(run.stderr.trim(), "err");
  assert.equal(run.result, run.stdout);
  const failed = await box.exec.command("echo nope >&2; exit 3");
  assert.equal(failed.exitCode, 3);
  assert.equal(failed.status, "failed");
  assert.equal(failed.result.trim(), "nope");
  const odd = await box.exec.command(`printf '%s' "it's a \\"test\\" $((6*7)) ü€𝄞"`);
  assert.equal(odd.stdout, 'it\'s a "test" 42 ü€𝄞');
  const many = await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map((n) => box.exec.command(`echo ${n}`)));
  assert.deepEqual(many.map((r) => r.result.trim()), ["1", "2", "3", "4", "5", "6", "7", "8"]);
});

await step("exec.code", async () => {
  const js = await box.exec.code({ lang: "js", code: "console.log([1, 2, 3].map((x) => x * 2).join(','))" });
  assert.equal(js.exitCode, 0, js.stderr);
  assert.equal(js.result.trim(), "2,4,6");
  const python = await box.exec.code({ lang: "python", code: "import sys\nprint('py', 6 * 7)\nprint('warn', file=sys.stderr)" });
  assert.equal(python.result.trim(), "py 42");
  assert.equal(python.stderr.trim(), "warn");
  const broken = await box.exec.code({ lang: "python", code: "raise SystemExit(9)" });
  assert.equal(broken.exitCode, 9);
  const slow = await box.exec.code({ lang: "python", code: "while True: pass", timeout: 700 });
  assert.notEqual(slow.exitCode, 0);
  assert.equal(slow.status, "failed");
  assert.ok(slow.stderr.length > 0, "a timeout says so");
});

await step("exec.stream", async () => {
  const stream = await box.exec.stream("for i in 1 2 3; do echo line $i; done; echo oops >&2; exit 5");
  let output = "";
  let exit;
  for await (const chunk of stream) {
    if (chunk.type === "output") output += chunk.data;
    if (chunk.type === "exit") exit = chunk;
  }
  assert.ok(output.includes("line 1\nline 2\nline 3\n"), output);
  assert.ok(output.includes("oops"), output);
  assert.equal(exit.exitCode, 5);
  assert.ok(exit.cpuNs > 0, `cpu_ns is ${exit.cpuNs}`);
  assert.equal(stream.status, "failed");
  // Nothing is added to output that ends in the middle of a line, and no character is cut.
  const odd = await box.exec.stream("printf 'a→€🎉'");
  let text = "";
  for await (const chunk of odd) if (chunk.type === "output") text += chunk.data;
  assert.equal(text, "a→€🎉");
  assert.equal(odd.result, "a→€🎉");
  assert.equal(odd.exitCode, 0);
});

await step("exec.stream arrives while it runs", async () => {
  // A fifo orders the two sides: the output must be here before the program may go on.
  await box.exec.command("mkfifo /workspace/home/gate");
  const gated = await box.exec.stream("echo first; read -r _ < /workspace/home/gate; echo second");
  let seen = "";
  for await (const chunk of gated) {
    if (chunk.type !== "output") continue;
    seen += chunk.data;
    if (seen === "first\n") await box.exec.command("echo go > /workspace/home/gate");
  }
  assert.equal(seen, "first\nsecond\n");
  assert.equal(gated.exitCode, 0);
});

await step("exec.streamCode", async () => {
  const stream = await box.exec.streamCode({ lang: "js", code: "for (const x of ['a', 'b']) console.log(x)" });
  let output = "";
  for await (const chunk of stream) if (chunk.type === "output") output += chunk.data;
  assert.equal(output.trim(), "a\nb");
  assert.equal(stream.exitCode, 0);
  assert.equal(stream.status, "completed");
});

await step("cd", async () => {
  await box.exec.command("mkdir -p project/src");
  await box.cd("project/src");
  assert.equal(box.cwd, "/workspace/home/project/src");
  assert.equal((await box.exec.command("pwd")).result.trim(), "/workspace/home/project/src");
  await box.cd("/tmp");
  assert.equal((await box.exec.command("pwd")).result.trim(), "/tmp");
  await box.cd("/work");
  assert.equal((await box.exec.command("pwd -P")).result.trim(), "/workspace/home");
  await assert.rejects(box.cd("/no/such/place"), /cd: \/no\/such\/place: No such file or directory/);
  await box.cd("/workspace/home");
});

await step("files.write and files.read", async () => {
  await box.files.write({ path: "notes/hello.txt", content: "Grüße\nzwei\n" });
  assert.equal(await box.files.read("notes/hello.txt"), "Grüße\nzwei\n");
  assert.equal(await box.files.read("./notes/../notes/hello.txt"), "Grüße\nzwei\n");
  assert.equal((await box.exec.command("cat notes/hello.txt; stat -c %U notes/hello.txt")).result, "Grüße\nzwei\nboxuser\n");
  const bytes = Buffer.from([...Array(256).keys()]);
  await box.files.write({ path: "/tmp/bytes.bin", content: bytes.toString("base64"), encoding: "base64" });
  assert.deepEqual(Buffer.from(await box.files.read("/tmp/bytes.bin", { encoding: "base64" }), "base64"), bytes);
  await refused(box.files.read("missing.txt"), [404]);
  await refused(box.files.read("/etc/shadow"), [403]);
  await refused(box.files.write({ path: "/etc/passwd", content: "x" }), [403]);
});

await step("files.list", async () => {
  await box.files.write({ path: "notes/sub/deep.txt", content: "deep" });
  const entries = await box.files.list("notes");
  assert.deepEqual(entries.map((e) => e.name).sort(), ["hello.txt", "sub"]);
  const hello = entries.find((e) => e.name === "hello.txt");
  assert.equal(hello.is_dir, false);
  assert.equal(hello.size, Buffer.byteLength("Grüße\nzwei\n"));
  assert.equal(hello.path, "/workspace/home/notes/hello.txt");
  assert.ok(Math.abs(Date.parse(hello.mod_time) - Date.now()) < 600_000, hello.mod_time);
  assert.equal(entries.find((e) => e.name === "sub").is_dir, true);
  assert.ok((await box.files.list()).some((e) => e.name === "notes" && e.is_dir));
  await refused(box.files.list("no-such-folder"), [404]);
});

await step("files.upload", async () => {
  await mkdir("up", { recursive: true });
  await writeFile("up/one.txt", "one");
  await writeFile("up/two.bin", Buffer.alloc(300_000, 7));
  await box.files.upload([
    { path: "up/one.txt", destination: "uploads/one.txt" },
    { path: "up/two.bin", destination: "/workspace/home/uploads/nested/two.bin" },
  ]);
  const check = await box.exec.command("cat uploads/one.txt; stat -c %s uploads/nested/two.bin; md5sum < uploads/nested/two.bin");
  assert.match(check.stdout, /^one300000\n/);
});

await step("files.download", async () => {
  await box.files.download({ folder: "uploads" });
  assert.equal(await readFile("uploads/one.txt", "utf8"), "one");
  await box.files.download({ folder: "uploads/nested" });
  assert.deepEqual(await readFile("nested/two.bin"), Buffer.alloc(300_000, 7));
  await box.cd("notes");
  await box.files.download();
  assert.equal(await readFile("notes/hello.txt", "utf8"), "Grüße\nzwei\n");
  await box.cd("/workspace/home");
});

await step("pause and wake by the next request", async () => {
  await box.exec.command("python3 -m http.server 8999 --bind 127.0.0.1 >/dev/null 2>&1 & echo $! > server.pid");
  await box.pause();
  assert.equal((await box.getStatus()).status, "paused");
  const start = performance.now();
  const run = await box.exec.command("kill -0 $(cat server.pid) && echo still here");
  assert.equal(run.result.trim(), "still here");
  console.log(`  woken and answered in ${(performance.now() - start).toFixed(1)} ms`);
  assert.ok(["idle", "running"].includes((await box.getStatus()).status));
  await box.pause();
  assert.equal(await box.files.read("notes/hello.txt"), "Grüße\nzwei\n");
  await box.pause();
  await box.resume();
  assert.ok(["idle", "running"].includes((await box.getStatus()).status));
});

await step("list, get, getByName", async () => {
  const all = await Box.list();
  const mine = all.find((b) => b.id === box.id);
  assert.equal(mine.name, name);
  assert.ok(Number.isInteger(mine.created_at) && Math.abs(mine.created_at - Date.now() / 1000) < 600);
  assert.ok((await Box.list({ label: "team:icebox" })).some((b) => b.id === box.id));
  assert.equal((await Box.list({ label: "team:other" })).length, 0);
  const again = await Box.get(box.id);
  assert.equal(again.id, box.id);
  assert.equal((await again.exec.command("cat notes/hello.txt")).result, "Grüße\nzwei\n");
  const named = await Box.getByName(name);
  assert.equal(named.id, box.id);
  assert.throws(() => named.agent.run({ prompt: "x" }), /No agent configured/);
});

await step("logs and runs", async () => {
  const marker = await box.exec.command("echo marker-of-the-run");
  const logs = await box.logs();
  assert.ok(logs.length > 0);
  for (const entry of logs) {
    assert.ok(Number.isInteger(entry.timestamp), JSON.stringify(entry));
    assert.ok(["info", "warn", "error"].includes(entry.level), JSON.stringify(entry));
    assert.ok(["system", "agent", "user"].includes(entry.source), JSON.stringify(entry));
    assert.equal(typeof entry.message, "string");
  }
  assert.ok((await box.logs({ limit: 2 })).length <= 2);
  assert.ok((await marker.logs()).length > 0, "logs of a run are found by the clock");
  const runs = await box.listRuns();
  assert.equal(runs[0].prompt, "sh -c echo marker-of-the-run");
  assert.equal(runs[0].type, "shell");
  assert.equal(runs[0].status, "completed");
  assert.equal(runs[0].box_id, box.id);
  assert.ok(runs[0].cpu_ns > 0, `cpu_ns ${runs[0].cpu_ns}`);
  assert.ok(runs.some((r) => r.status === "failed"));
  const times = runs.map((r) => r.created_at);
  assert.deepEqual(times, [...times].sort((a, b) => b - a), "newest first");
});

// As the client is told, with the resolver of this machine.
const visit = async (url, headers = {}) => {
  const answer = await fetch(url, { headers });
  return [answer.status, await answer.text()];
};

await step("public URLs", async () => {
  await box.exec.command("mkdir -p www && echo from the box > www/index.html");
  await box.exec.command("setsid python3 -m http.server 8000 --bind 127.0.0.1 --directory www >/dev/null 2>&1 &");
  await box.exec.command("until curl -s http://127.0.0.1:8000/ >/dev/null; do sleep 0.05; done");
  const free = await box.getPublicURL(8000);
  assert.equal(free.port, 8000);
  assert.ok(!("token" in free) && !("username" in free) && !("password" in free), JSON.stringify(free));
  assert.deepEqual(await visit(free.url), [200, "from the box\n"]);
  const both = await box.getPublicURL(8000, { bearerToken: true, basicAuth: true });
  assert.equal(both.username, "user");
  assert.equal((await visit(both.url))[0], 401);
  await box.pause();
  assert.equal((await visit(both.url, { authorization: "Bearer x" }))[0], 401);
  assert.equal((await box.getStatus()).status, "paused");
  assert.deepEqual(await visit(both.url, { authorization: `Bearer ${both.token}` }), [200, "from the box\n"]);
  const basic = Buffer.from(`user:${both.password}`).toString("base64");
  assert.deepEqual(await visit(both.url, { authorization: `Basic ${basic}` }), [200, "from the box\n"]);
  const { publicURLs } = await box.listPublicURLs();
  assert.deepEqual(publicURLs.map((u) => [u.id, u.port, u.url]), [[`${box.id}-8000`, 8000, both.url]]);
  await box.deletePublicURL(8000);
  assert.equal((await visit(both.url))[0], 404);
});

await step("cancel", async () => {
  // A run id that the server never told. This client keeps the connection: only the server can end the loop.
  const stream = await box.exec.stream("sleep 4711");
  const reading = (async () => {
    for await (const chunk of stream) if (chunk.type === "exit") return chunk.exitCode;
  })();
  await stream.cancel();
  assert.equal(await reading, 143);
  assert.notEqual((await box.exec.command("ps -eo args | grep '[s]leep 4711'")).exitCode, 0);
});

await step("snapshots", async () => {
  await box.exec.command("echo of then > snapped.txt");
  const first = await box.snapshot({ name: "before" });
  assert.equal(first.status, "ready");
  assert.equal(first.name, "before");
  assert.equal(first.box_id, box.id);
  assert.ok(Number.isInteger(first.size_bytes) && first.size_bytes > 0, JSON.stringify(first));
  assert.ok(Math.abs(first.created_at - Date.now() / 1000) < 600, JSON.stringify(first));
  await box.pause();
  const second = await box.snapshot({ name: "asleep" });
  assert.equal((await box.getStatus()).status, "paused");
  assert.deepEqual((await box.listSnapshots()).map((s) => s.id), [first.id, second.id]);
  await box.exec.command("echo of now > snapped.txt");
  const copy = await Box.fromSnapshot(first.id, { env: { EXTRA: "1" }, size: "medium" });
  assert.equal(copy.size, "medium");
  assert.equal(await copy.files.read("snapped.txt"), "of then\n");
  assert.equal((await copy.exec.command("echo $GREETING $EXTRA")).result.trim(), "hello from env 1");
  const short = await EphemeralBox.fromSnapshot(second.id, { ttl: 600 });
  assert.ok(short.expiresAt > Date.now() / 1000, `${short.expiresAt}`);
  const ofShort = await short.snapshot({ name: "of an ephemeral box" });
  assert.deepEqual((await short.listSnapshots()).map((s) => s.id), [ofShort.id]);
  await short.deleteSnapshot(ofShort.id);
  assert.deepEqual(await short.listSnapshots(), []);
  await short.delete();
  await copy.delete();
  // An agent is carried over.
  const agent = await Box.create({ agent: { harness: "codex", model: "openai/gpt-5", apiKey: "sk-test" } });
  const ofAgent = await agent.snapshot({ name: "agent" });
  await agent.delete();
  const again = await Box.fromSnapshot(ofAgent.id);
  assert.equal(again.modelConfig.model, "openai/gpt-5");
  assert.equal(again.modelConfig.harness, "codex");
  await again.delete();
  await box.deleteSnapshot(first.id);
  await refused(box.deleteSnapshot(first.id), [404]);
  await refused(Box.fromSnapshot(first.id), [404]);
  assert.deepEqual(await Box.deleteSnapshots({ snapshotIds: [ofAgent.id] }), { deleted: 1 });
  await refused(Box.deleteSnapshots({ snapshotIds: [] }), [400]);
  assert.deepEqual((await box.listSnapshots()).map((s) => s.id), [second.id]);
  assert.deepEqual(await Box.deleteSnapshots(), { deleted: 1 });
  assert.deepEqual(await box.listSnapshots(), []);
});

await step("errors", async () => {
  await refused(Box.get(box.id, { apiKey: "box_wrong" }), [401]);
  await refused(Box.create({ apiKey: "box_wrong" }), [401]);
  await refused(Box.list({ apiKey: "box_wrong" }), [401]);
  await refused(Box.get("no-such-box-1"), [404]);
  await refused(Box.create({ size: "gigantic" }), [400]);
  await refused(Box.create({ name: "no spaces/or slashes" }), [400]);
  await refused(box._request("POST", `/v2/box/${box.id}/exec`, { body: { command: "not an argv" } }), [400]);
  await refused(box._request("POST", `/v2/box/${box.id}/exec`, { body: { command: [] } }), [400]);
  await refused(box._request("POST", `/v2/box/${box.id}/exec`, { body: { command: ["x".repeat(20_000_000)] } }), [413]);
  await refused(Box.delete({ boxIds: [] }), [400]);
});

await step("delete", async () => {
  const second = await Box.create();
  await Box.delete({ boxIds: [second.id] });
  await refused(Box.get(second.id), [404]);
  await box.delete();
  await refused(Box.get(box.id), [404]);
  await refused(box.exec.command("true"), [404]);
  assert.ok(!(await Box.list()).some((b) => b.id === box.id));
});

console.log("SCENARIO PASSED");
