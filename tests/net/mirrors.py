"""Makes tiny mirrors inside a box, with the box's own tools: a wheel and its index, an npm package, a git repository, a
flat repository of Debian packages. Prints them as JSON: "host/path" -> content in base64."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile

FILES = {}


def put(path, content):
    FILES[path] = base64.b64encode(content if isinstance(content, bytes) else content.encode()).decode()


def run(*argv, **more):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, **more).stdout


# pip: https://pypi.test/simple/ with a file on another host, as the public index has it.
wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as z:
    z.writestr("tinypack/__init__.py", "WORD = 'from the wheel'\n")
    meta = "tinypack-1.0.dist-info/"
    z.writestr(meta + "METADATA", "Metadata-Version: 2.1\nName: tinypack\nVersion: 1.0\n")
    z.writestr(meta + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr(meta + "RECORD", f"tinypack/__init__.py,,\n{meta}METADATA,,\n{meta}WHEEL,,\n{meta}RECORD,,\n")
name = "tinypack-1.0-py3-none-any.whl"
digest = hashlib.sha256(wheel.getvalue()).hexdigest()
put(f"files.pythonhosted.test/packages/{name}", wheel.getvalue())
link = f'<!DOCTYPE html><html><body><a href="https://files.pythonhosted.test/packages/{name}#sha256={digest}">{name}</a></body></html>'
put("pypi.test/simple/tinypack/", link)

# npm: https://registry.test/
package = json.dumps({"name": "tinymodule", "version": "1.0.0", "main": "index.js"}).encode()
tarball = io.BytesIO()
with tarfile.open(fileobj=tarball, mode="w:gz") as t:
    for path, content in (("package/package.json", package), ("package/index.js", b"module.exports = 'from the tarball'\n")):
        info = tarfile.TarInfo(path)
        info.size = len(content)
        t.addfile(info, io.BytesIO(content))
blob = tarball.getvalue()
dist = {
    "tarball": "https://registry.test/tinymodule/-/tinymodule-1.0.0.tgz",
    "shasum": hashlib.sha1(blob).hexdigest(),
    "integrity": "sha512-" + base64.b64encode(hashlib.sha512(blob).digest()).decode(),
}
version = {"name": "tinymodule", "version": "1.0.0", "main": "index.js", "dist": dist}
put("registry.test/tinymodule/-/tinymodule-1.0.0.tgz", blob)
put("registry.test/tinymodule",
    json.dumps({"name": "tinymodule", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}))

# git: https://git.test/tiny.git, as plain files.
os.makedirs("made/tree")
git = {"cwd": "made/tree", "env": dict(os.environ, GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", GIT_COMMITTER_NAME="a",
                                       GIT_COMMITTER_EMAIL="a@b")}
run("git", "init", "-q", "-b", "main", **git)
with open("made/tree/README", "w") as f:
    f.write("from the repository\n")
run("git", "add", "README", **git)
run("git", "commit", "-q", "-m", "first", **git)
run("git", "clone", "-q", "--bare", "made/tree", "made/tiny.git")
run("git", "--git-dir", "made/tiny.git", "update-server-info")
for top, _, files in os.walk("made/tiny.git"):
    for file in files:
        path = os.path.join(top, file)
        put("git.test/" + os.path.relpath(path, "made"), open(path, "rb").read())

# apt: http://deb.test/ ./
os.makedirs("made/deb/DEBIAN")
os.makedirs("made/deb/usr/share/tinydeb")
with open("made/deb/DEBIAN/control", "w") as f:
    f.write("Package: tinydeb\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: tiny\n")
with open("made/deb/usr/share/tinydeb/word", "w") as f:
    f.write("from the package\n")
run("dpkg-deb", "--root-owner-group", "-b", "made/deb", "made/tinydeb_1.0_all.deb")
deb = open("made/tinydeb_1.0_all.deb", "rb").read()
put("deb.test/tinydeb_1.0_all.deb", deb)
control = open("made/deb/DEBIAN/control").read()
packages = (control + f"Filename: ./tinydeb_1.0_all.deb\nSize: {len(deb)}\n"
            f"MD5sum: {hashlib.md5(deb).hexdigest()}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n").encode()
put("deb.test/Packages", packages)
release = (f"Suite: test\nArchitectures: amd64 all\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
           f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n")
put("deb.test/Release", release)

print(json.dumps(FILES))
