"""The host runtime on machines unlike this one: it makes small environments with the real uv, from an index of
the test's own on this machine, behind a certificate that only the test knows.
"""

import base64
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.command import ROOT
from support.stand_in_machine import older_python

VARIANT, VERSION = ("cu13", "3.12") if sys.version_info >= (3, 12) else ("cu118", "3.8")


LOCK = "cu13.lock" if VARIANT == "cu13" else "cu118-pypi.lock"


PYTHON = os.path.realpath(sys.executable)


# What a recipe is in these clones: it says which Python runs it and what surrounds it.
RECIPE = """import os, sys, torch
print(sys.executable, sys.version_info[:2] == (%s), torch.__file__, os.environ.get("USER"), sys.argv[1:])
"""


def wheel(folder, name, scripts=()):
    """A wheel of one module without content and of scripts; its line in a lock."""
    file = folder / f"{name}-2.0.0-py3-none-any.whl"
    info = f"{name}-2.0.0.dist-info"
    parts = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **{f"{name}-2.0.0.data/scripts/{script}": f"#!/bin/sh\necho {script} $*\n" for script in scripts},
    }
    record = ""
    with zipfile.ZipFile(str(file), "w") as archive:
        for path, text in parts.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return f"{name}==2.0.0 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def authority(place):
    """A certificate authority and what it signed for localhost: (its certificate, the other, that one's key)."""
    files = [place / name for name in ("ca.pem", "ca.key", "cert.pem", "cert.key", "request", "extensions")]
    ca, ca_key, cert, key, request, extensions = map(str, files)
    files[-1].write_text("subjectAltName=DNS:localhost")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=our own", "-keyout", ca_key, "-out", ca],
        [*new, "-subj", "/CN=localhost", "-keyout", key, "-out", request],
        ["openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-set_serial", "2", "-days", "2",
         "-extfile", extensions, "-out", cert],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return files[0], cert, key


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """(its address, the certificate's file, the locks' lines, the paths it was asked for)."""
    place, asked = tmp_path_factory.mktemp("index"), []
    ca, cert, key = authority(tmp_path_factory.mktemp("tls"))
    lines = {}
    for name, scripts in (("torch", ()), ("more", ()), ("tools", ("just", "uv"))):
        (place / "simple" / name).mkdir(parents=True)
        lines[name] = wheel(place / "simple" / name, name, scripts)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *words):
            super().__init__(*words, directory=str(place))

        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}/simple", ca, lines, asked
    server.shutdown()


class Host:
    """A clone with locks of one package each, its cache, and a shell in which nothing of this machine's is set."""

    def __init__(self, folder, index):
        self.root, self.cache, self.programs = folder / "clone", folder / "cache", folder / "bin"
        self.address, self.certificate, lines, self.asked = index
        for name in ("docker/runtime", "docker/locks", "recipe"):
            (self.root / name).mkdir(parents=True)
        self.programs.mkdir()
        scripts = (
            "justw",
            "docker/runtime/python",
            "docker/runtime/host",
            "docker/runtime/flavour",
            "docker/runtime/message",
        )
        for name in (*scripts, "docker/locks/overrides.txt"):
            shutil.copy(str(ROOT / name), str(self.root / name))
        for name in {LOCK, "cu118-pypi.lock"}:
            (self.root / "docker/locks" / name).write_text(lines["torch"])
        texts = {"more": lines["more"], "smollm2": lines["more"], "loggers": "", "tools": lines["tools"]}
        for name, text in texts.items():
            (self.root / f"docker/locks/{name}.lock").write_text(text)
        (self.root / "recipe/__main__.py").write_text(RECIPE % VERSION.replace(".", ", "))
        self.program("df", "echo; echo /dev/x 99999999 0 99999999 0% /")  # 8 GB are not asked of this disk
        path = [str(self.programs), *os.environ["PATH"].split(os.pathsep)]
        self.variables = {
            "PATH": os.pathsep.join(part for part in path if Path(part) != Path(sys.executable).parent),
            "HOME": str(folder / "home"), "USER": "tester", "RECIPE_CACHE": str(self.cache), "UV": os.environ["UV"],
            "VARIANT": VARIANT, "TORCH": "pypi", f"PYTHON{VERSION.replace('.', '')}": PYTHON,
            "UV_DEFAULT_INDEX": self.address, "SSL_CERT_FILE": str(self.certificate), "UV_HTTP_RETRIES": "0",
        }  # fmt: skip

    def program(self, name, text):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, *words, without=(), script="docker/runtime/host", **more):
        environment = {name: value for name, value in {**self.variables, **more}.items() if name not in without}
        return subprocess.Popen(
            [str(self.root / script), *words], env=environment, cwd=str(self.root), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        )  # fmt: skip

    def run(self, *words, **more):
        child = self.start(*words, **more)
        out, err = child.communicate(timeout=60)
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    @property
    def environment(self):
        [made] = self.cache.glob("env-*-[0-9]*[0-9]/")
        return made

    def works(self, done):
        """Assert that the recipe ran, with the environment's Python and packages."""
        assert done.returncode == 0, done.stderr
        said = done.stdout.split(" ", 3)
        assert said[:2] == [str(self.environment / "bin/python"), "True"]
        assert said[2].startswith(f"{self.environment}/lib/")


@pytest.fixture
def host(tmp_path, index):
    return Host(tmp_path, index)


@pytest.mark.parametrize("lost", ["gone", "does not start", "of another version"])
def test_an_environment_that_outlives_its_python_gets_another(host, lost):
    """Its packages stay, nothing is fetched, and no other `python` of the PATH takes its place."""
    host.works(host.run("run", "plan"))
    python, marker = host.environment / "bin/python", host.environment / "kept"
    marker.touch()
    python.unlink()
    if lost == "gone":
        python.symlink_to("/nowhere/bin/python")
    else:
        body = "echo libpython.so: cannot open >&2; exit 127" if lost == "does not start" else "echo 3.6"
        python.symlink_to(host.program("broken", body))
    host.program("python", "echo another Python")
    made = host.run("made")
    assert made.returncode == 1
    assert "is gone or does not start" in made.stdout
    host.asked.clear()
    again = host.run("run", "plan")
    host.works(again)
    assert "giving it another" in again.stderr
    assert marker.exists()
    assert not host.asked
    assert host.run("made").returncode == 0
    assert host.run("run", "plan").stderr == ""


def test_no_python_for_an_environment_that_lost_its_own(host):
    """Then it is said, and what is there stays."""
    host.works(host.run("run", "plan"))
    (host.environment / "bin/python").unlink()
    alone = {"UV_PYTHON_DOWNLOADS": "never", "PATH": f"{host.programs}:/usr/bin:/bin", "PYENV_ROOT": "/nowhere"}
    name = f"PYTHON{VERSION.replace('.', '')}"
    if os.access(f"/usr/bin/python{VERSION}", os.X_OK):
        pytest.skip(f"this machine has a Python {VERSION} of its own")
    done = host.run("run", "plan", without=[name], **alone)
    assert done.returncode == 3
    assert f"No Python {VERSION} could be found or fetched" in done.stderr
    assert f"{name}=/path/to/python{VERSION}" in done.stderr
    assert (host.environment / ".ready").exists()


def test_pythons_that_uv_fetches_stay_beside_the_environment(host):
    """Where the cache's disk is kept and the home is not."""
    told = host.program("uv", f'[ "$1" != venv ] || env >"{host.programs}/told"; exec {os.environ["UV"]} "$@"')
    host.works(host.run("run", "plan", UV=str(told), UV_PYTHON_INSTALL_DIR="/nowhere"))
    assert f"UV_PYTHON_INSTALL_DIR={host.cache}/python\n" in (host.programs / "told").read_text()


def test_a_networks_certificate_by_any_of_its_names(host):
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        shutil.rmtree(str(host.cache), ignore_errors=True)
        named = {"SSL_CERT_FILE": "/nowhere/ca.pem", name: str(host.certificate)}  # a name without a file is none
        host.works(host.run("run", "plan", **named))
    done = host.run("env", without=["SSL_CERT_FILE"], RECIPE_CACHE=f"{host.cache}2", UV_NO_CACHE="1")
    assert done.returncode == 3
    assert "certificate" in done.stderr


def test_uvs_variables_do_not_change_what_is_installed(host):
    """Those of a shell that is used for other projects; those of the network do count."""
    nowhere = "https://localhost:9/simple"
    others = {
        "UV_TORCH_BACKEND": "cpu", "UV_SYSTEM_PYTHON": "1", "UV_PYTHON": "3.6", "UV_INDEX": nowhere,
        "UV_INDEX_URL": nowhere, "UV_EXTRA_INDEX_URL": nowhere, "UV_FIND_LINKS": nowhere, "UV_NO_BINARY": "1",
        "UV_EXCLUDE_NEWER": "2001-01-01", "UV_CONSTRAINT": "/nowhere/c.txt", "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_NO_BUILD_ISOLATION": "1", "UV_BUILD_CONSTRAINT": "/nowhere/b.txt", "UV_CONFIG_FILE": "/nowhere/uv.toml",
        "UV_WORKING_DIR": "/nowhere", "UV_OVERRIDE": "/nowhere/o.txt", "UV_PREVIEW_FEATURES": "all",
    }  # fmt: skip
    host.works(host.run("run", "plan", **others))
    refused = host.run("env", without=["UV_DEFAULT_INDEX"], UV_DEFAULT_INDEX=nowhere, RECIPE_CACHE=f"{host.cache}2")
    assert refused.returncode == 3
    assert "UV_DEFAULT_INDEX=https://..." in refused.stderr


@pytest.mark.parametrize("home", [None, "/dev/null/home"])
def test_without_a_home(host, home):
    """Kubernetes uids have none, or one that cannot be written, and no name: uv's cache lies in ours."""
    host.program("id", '[ "$1" != -un ] || exit 1; exec /usr/bin/id "$@"')
    more = {} if home is None else {"HOME": home}
    done = host.run("run", "plan", without=["USER"] + ["HOME"] * (home is None), **more)
    host.works(done)
    assert " recipe [" in done.stdout
    assert (host.cache / "uv").is_dir()


def test_without_flock(host):
    """As on Lustre, where it fails, and without util-linux, where there is none."""
    host.program("flock", "echo 'flock: 9: Function not implemented' >&2; exit 71")
    done = host.run("run", "plan")
    host.works(done)
    assert "waiting" not in done.stderr


def test_of_two_commands_one_makes_the_environment(host):
    body = f'[ "$1" != venv ] || sleep 3; echo "$*" >>{host.programs}/told; exec {os.environ["UV"]} "$@"'
    slow = host.program("uv", body)
    first = host.start("run", "plan", UV=str(slow))
    until = time.time() + 20
    while not (host.cache / "making/beat").exists():
        assert time.time() < until
        time.sleep(0.05)
    second = host.run("run", "plan", UV=str(slow))
    host.works(second)
    assert f"(process {first.pid} on {os.uname().nodename}) is making the environment; waiting" in second.stderr
    out, err = first.communicate(timeout=60)
    host.works(subprocess.CompletedProcess([], first.returncode, out, err))
    told = (host.programs / "told").read_text()
    assert re.findall(r"(?m)^(?:pip )?(\w+)", told) == ["venv", "install", "install", "install"]
    assert not (host.cache / "making").exists()


def test_a_command_that_is_gone_is_not_waited_for(host):
    """A machine that went down leaves its lock; one that was killed or interrupted leaves none."""
    (host.cache / "making").mkdir(parents=True)
    (host.cache / "making/beat").write_text("process 1 on elsewhere: 7\n")
    done = host.run("run", "plan", LOCK_PATIENCE="1")
    host.works(done)
    assert "process 1 on elsewhere" in done.stderr
    assert "taking over" in done.stderr
    assert not list(host.cache.glob("making*"))
    shutil.rmtree(str(host.environment))
    for sign in ("terminate", "fails"):
        slow = host.program("uv", "exec sleep 30" if sign == "terminate" else "exit 1")
        child = host.start("env", UV=str(slow))
        until = time.time() + 20
        while sign == "terminate" and not (host.cache / "making/beat").exists():
            assert time.time() < until
            time.sleep(0.05)
        if sign == "terminate":
            child.terminate()
        child.communicate(timeout=40)
        assert child.returncode
        assert not list(host.cache.glob("making*"))


def test_a_cache_that_cannot_be_written(host):
    host.cache.write_text("")
    done = host.run("env")
    assert done.returncode == 3
    assert "RECIPE_CACHE=/some/folder" in done.stderr


def test_pips_variables_do_not_change_what_justw_fetches(host, tmp_path):
    """Nor does a pip.conf; pip's index and the network's certificate count."""
    others = {
        "PIP_TARGET": "/nowhere", "PIP_PREFIX": "/nowhere", "PIP_ROOT": f"{tmp_path}/root", "PIP_PLATFORM": "win32",
        "PIP_CONSTRAINT": "/nowhere/c.txt", "PIP_DRY_RUN": "1", "PIP_NO_BINARY": ":all:", "PIP_PYTHON": "/nowhere",
        "PIP_REQUIRE_VIRTUALENV": "1", "PIP_USER": "1", "PIP_REQUIREMENT": "/nowhere/r.txt", "PIP_no_compile": "1",
        "PIP_INDEX_URL": host.address, "PIP_CONFIG_FILE": f"{tmp_path}/pip.conf", "PIP_NO_CACHE_DIR": "1",
    }  # fmt: skip
    config = "[global]\nrequire-virtualenv = true\n[install]\nuser = true\nprefix = /nowhere\ntarget = /nowhere\n"
    (tmp_path / "pip.conf").write_text(config)
    done = host.run(
        "--list", script="justw", **others
    )  # nothing that docker/runtime/words checks: it is not in this clone
    assert done.stdout == "just --list\n", done.stderr
    assert not Path("/nowhere").exists()
    assert not (tmp_path / "root").exists()


def test_a_python_that_is_too_old_for_uv_is_passed_over(host):
    """justw's own question is of Python 3.8; what stands here for an older one says that it is 3.7."""
    host.program("python3", older_python().partition("\n")[2])
    told = host.run(script="justw", PATH=f"{host.programs}:{_without_python(host)}", PIP_INDEX_URL=host.address)
    assert told.returncode == 3
    assert "no Python 3.8 or newer with pip" in told.stderr


def _without_python(host):
    """A folder with what justw itself calls."""
    place = host.programs.parent / "few"
    place.mkdir()
    for name in ("sh", "bash", "cksum", "cut", "dirname", "env", "mkdir", "tail", "rm", "mv"):
        (place / name).symlink_to(shutil.which(name))
    return place


# --- shells of other encodings ---

SCRIPTS = [
    path
    for path in [ROOT / "justw", ROOT / "tests/support/standin", *ROOT.glob("docker/**/*"), *ROOT.glob(".ci/*")]
    if path.is_file() and re.match(rb"#!.*[ /](ba)?sh\b", path.read_bytes())
]


def test_scripts_are_ascii_but_for_comments():
    """In a shell of GB18030 or Big5 the last byte of an ellipsis in UTF-8 takes the brace or quote behind it along."""
    assert {path.name for path in SCRIPTS} > {"justw", "host", "flavour", "places", "container", "run"}
    for path in SCRIPTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = re.sub(r"(^|\s)#.*", "", line)
            assert code.isascii(), f"{path.name}:{number}: {line}"


@pytest.fixture(scope="module", params=["zh_CN.GB18030", "zh_TW.BIG5"])
def locale(request, tmp_path_factory):
    """Variables of a shell in that locale, which is made on the spot."""
    language, _, charmap = request.param.partition(".")
    place = tmp_path_factory.mktemp("locale")
    if not shutil.which("localedef"):
        pytest.skip("localedef is not installed")
    made = subprocess.run(["localedef", "-i", language, "-f", charmap, str(place / request.param)], capture_output=True)
    if made.returncode:
        pytest.skip(f"localedef cannot make {request.param} (Debian's package locales): {made.stderr[-200:]}")
    return {"LOCPATH": str(place), "LC_ALL": request.param}


def test_shells_of_chinese_encodings(host, locale, tmp_path):
    """Every script parses, the environment is made, uv is quoted, and files that a recipe names are seen."""
    for path in SCRIPTS:
        done = subprocess.run(["bash", "-n", str(path)], env={**os.environ, **locale}, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), path.name
    host.works(host.run("run", "plan", **locale))
    wrong = {**locale, "RECIPE_CACHE": f"{host.cache}2", "UV_NO_CACHE": "1"}
    refused = host.run("env", UV_DEFAULT_INDEX="https://localhost:9/simple", **wrong)
    assert "https://localhost:9/simple" in refused.stderr.partition("What uv said")[2].partition("Behind a slow")[0]
    assert "UV_DEFAULT_INDEX=https://..." in refused.stderr
    host.program("apptainer", 'printf "%s\\n" "$@"')
    book = tmp_path / "书.csv"  # whose last byte and the dot are no character of these encodings
    book.touch()
    (tmp_path / "mine.toml").write_text(f'[data]\nsystem = "你是一位教练…"\nfiles = ["{book}"]\n', encoding="utf-8")
    sif = host.cache / "image.sif"
    sif.touch()
    apptainer = {"RUNTIME": "apptainer", "RECIPE_IMAGE": str(sif)}
    seen = host.run("data", f"{tmp_path}/mine.toml", script=ROOT / "docker/runtime/run", **apptainer, **locale)
    assert f"{book}:{book}:ro" in seen.stdout.splitlines(), seen.stderr
