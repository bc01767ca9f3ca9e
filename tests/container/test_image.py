"""The image and its runtimes, with real engines: a small image (the Dockerfile's `bare`) in which the locked
environment of this machine is mounted, so that stages run inside as they do in the whole one.

podman, buildah, runc, uidmap and mmdebstrap, docker.io for dockerd and docker-registry are Debian's; `.ci/run` installs
them where it may.
"""

import calendar
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from support.command import LOCK, ROOT
from support.terminal import WORDS, read_until, terminal

PACKAGES = re.search(r"packages=\((.*)\)", (ROOT / ".ci/run").read_text(encoding="utf-8"))[1]


ENGINES = f"apt-get install --no-install-recommends {PACKAGES}"


CERTIFICATES = "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"


ENVIRONMENT = Path(os.environ["VIRTUAL_ENV"]).resolve()


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


PROBE = """
id -u
touch /opt/x 2>&1; touch recipe/x 2>&1; touch models/x 2>&1
touch output/made .cache/made /tmp/made && echo writable
grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
ls /sys/class/net
df --output=size -B1G /dev/shm | tail -n 1
cat /proc/1/comm
"""


def run(words, cwd=ROOT, **more):
    environment = {**os.environ, **more.pop("env", {})}
    more = {"timeout": 600, **({} if "input" in more else {"stdin": subprocess.DEVNULL}), **more}
    return subprocess.run(list(map(str, words)), cwd=str(cwd), env=environment, capture_output=True, text=True, **more)


def ok(words, **more):
    done = run(words, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """A base image as a file; see tests/support/standin."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        pytest.skip(f"a base image is made as root with mmdebstrap: {ENGINES}")
    file = tmp_path_factory.mktemp("base") / "standin.tar"
    done = run([ROOT / "tests" / "support" / "standin", file])
    if done.returncode:
        pytest.skip(f"NO IMAGE TEST: a base image cannot be made here: {done.stderr[-400:]}")
    return file


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The address of a registry of our own on this machine, and a file that tells podman it is one without TLS."""
    if not shutil.which("docker-registry"):
        pytest.skip(f"docker-registry is not installed: {ENGINES}")
    place = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (place / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    (place / "registries.conf").write_text(
        f'unqualified-search-registries = []\n[[registry]]\nlocation = "{address}"\ninsecure = true\n'
    )
    with (place / "log").open("w") as log:
        serving = subprocess.Popen(["docker-registry", "serve", str(place / "config.yml")], stdout=log, stderr=log)
    try:
        deadline = time.time() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(address.split(":"), 1):
                break
            assert serving.poll() is None, (place / "log").read_text()
            assert time.time() < deadline, (place / "log").read_text()
            time.sleep(0.1)
        yield address, place / "registries.conf"
    finally:
        serving.terminate()
        serving.wait(30)


@pytest.fixture(scope="module")
def short():
    """A folder for podman. Paths in pytest's are so long, where several processes test, that podman 4.3 learns only
    after 20 s that a container has ended.
    """
    place = Path(tempfile.mkdtemp(prefix="podman-"))
    yield place
    run(["umount", place / "graph/overlay"])  # podman mounts it onto itself
    shutil.rmtree(str(place), ignore_errors=True)


@pytest.fixture(scope="module")
def podman(standin, short):
    """Environment variables with which podman runs here, apart from the user's own images."""
    if not shutil.which("podman") or not shutil.which("runc"):
        pytest.skip(f"podman is not installed: {ENGINES}")
    hard = re.search(r"Max open files\s+\d+\s+(\d+)", Path("/proc/self/limits").read_text())[1]
    (short / "containers.conf").write_text(
        f'[containers]\nnetns = "host"\ndefault_ulimits = ["nofile=1024:{hard}", "nproc=32768:32768"]\n'
        f'[engine]\nruntime = "runc"\ntmp_dir = "{short}/tmp"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        '[network]\nnetwork_backend = "netavark"\n'
    )
    graph, state = short / "graph", short / "run"
    (short / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\nrunroot = "{state}"\ngraphroot = "{graph}"\n')
    variables = {
        "RUNTIME": "podman", "CONTAINERS_CONF": str(short / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(short / "storage.conf"),
    }  # fmt: skip
    ok(["podman", "import", "--change", CERTIFICATES, standin, "standin:1"], env=variables)
    tried = run(["podman", "run", "--rm", "--network", "none", "--read-only", "standin:1", "true"], env=variables)
    if tried.returncode:
        pytest.skip(f"NO IMAGE TEST: this machine lets podman run no container: {tried.stderr[-400:]}")
    yield variables
    run(["podman", "rmi", "--all", "--force"], env=variables)  # not `system reset`: it looks beyond our folders


@pytest.fixture(scope="module")
def dockerd(standin, tmp_path_factory):
    """The same for a docker daemon of our own, on whose PATH a stub stands for NVIDIA's hook."""
    if not shutil.which("dockerd"):
        pytest.skip(f"dockerd is not installed: {ENGINES}")
    place = tmp_path_factory.mktemp("docker")
    hook = place / "bin" / "nvidia-container-runtime-hook"
    hook.parent.mkdir()
    socket = place / "docker.sock"
    words = ["dockerd", "--data-root", place / "data", "--exec-root", place / "exec", "--pidfile", place / "pid",
             "-H", f"unix://{socket}"]  # fmt: skip
    environment = {**os.environ, "PATH": f"{hook.parent}{os.pathsep}{os.environ['PATH']}"}
    # Debian's client first: it is of the daemon's age, and needs no buildx for BuildKit.
    path = os.pathsep.join(["/usr/bin", os.environ["PATH"]])
    variables = {"RUNTIME": "docker", "DOCKER_HOST": f"unix://{socket}", "PATH": path}
    running = []

    def start():
        with (place / "log").open("a") as log:
            running.append(subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment))
        deadline = time.time() + 60
        while run(["docker", "info"], env=variables).returncode:
            if running[-1].poll() is not None or time.time() > deadline:
                pytest.skip(f"NO DOCKER TEST: dockerd does not start here: {(place / 'log').read_text()[-400:]}")
            time.sleep(0.5)

    def stop():
        running[-1].terminate()
        running.pop().wait(60)

    def with_hook():  # the daemon looks for it when it starts
        hook.write_text("#!/bin/sh\ncat >/dev/null\n")
        hook.chmod(0o755)
        stop()
        start()

    try:
        start()
        ok(["docker", "import", "--change", CERTIFICATES, standin, "localhost/standin:1"], env=variables)
        tried = run(["docker", "run", "--rm", "--network", "none", "localhost/standin:1", "true"], env=variables)
        if tried.returncode:
            pytest.skip(f"NO DOCKER TEST: this machine lets docker run no container: {tried.stderr[-400:]}")
        yield variables, with_hook
    finally:
        if running and running[-1].poll() is None:
            stop()


def further():
    """[(packages of docker/runtime/host's `beside` here, where an image has them: beside its environment)]."""
    paths = [Path(path) for path in os.environ["PYTHONPATH"].split(os.pathsep)]
    found = [path for path in paths if path.name.startswith(("more-", "smollm2-"))]
    assert len(found) == 2, found
    return [(path, ENVIRONMENT.parent / path.name) for path in found]


def built(variables, target="bare", **more):
    """Build the image; the variables with which the runtimes take it, with this machine's environment in it."""
    env = {**variables, "REGISTRY": "localhost", "BASE_IMAGE": "standin:1", "TORCH": "pypi", **more}
    ok([ROOT / "docker/image", "build", target], env=env)
    name = ok([ROOT / "docker/image", "name"], env=env).strip() + f"-{target}"
    # Writable, so that what Python compiled there is used, as in a whole image after its first run.
    mounted = f"--volume {ENVIRONMENT}:{ENVIRONMENT} --env RECIPE_ENV={ENVIRONMENT}"
    mounted += "".join(f" --volume {folder}:{place}:ro" for folder, place in further())
    return {**env, "RECIPE_IMAGE": name, "RUN_OPTIONS": mounted, "DOCTOR": "off", "RECIPE_CACHE": ""}


@pytest.fixture(scope="module")
def bare(podman):
    return built(podman)


def copy_of_the_clone(place):
    """The files of this clone below `place`, in a folder with spaces, Chinese characters and a comma."""
    place = place / "带 空格, 逗号" / "克隆"
    listed = ok(["git", "ls-files", "--cached", "--others", "--exclude-standard"]).splitlines()
    for name in (name for name in listed if (ROOT / name).exists()):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(ROOT / name), str(place / name))
    return place


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copy_of_the_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A table that takes minutes to plan with, for what has to be stopped."""
    file = tmp_path_factory.mktemp("long") / "long.csv"
    file.write_text("q,a\n" + "".join(f"question {row},answer {row}\n" for row in range(600_000)), encoding="utf-8")
    return file


def stopped(words, env, clone, sign, whom, until):
    """What a command had said when `sign` ended it after it said `until`; `whom`: os.kill or os.killpg."""
    told = clone / "told"
    with told.open("w") as output:
        child = subprocess.Popen(
            list(map(str, words)), env={**os.environ, **env}, stdout=output, stderr=output, start_new_session=True,
            stdin=subprocess.DEVNULL, cwd=str(clone),
        )  # fmt: skip
    try:
        deadline = time.time() + 180
        while not re.search(until, told.read_text()):
            assert child.poll() is None, told.read_text()
            assert time.time() < deadline, told.read_text()
            time.sleep(0.2)
        whom(child.pid, sign)
        assert child.wait(60) != 0
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert "Traceback" not in told.read_text()
    return told.read_text()


def assert_no_container(listing, **more):
    """`listing`: the command that lists all, running or not; removing the last may take a moment."""
    deadline = time.time() + 30
    while ok(listing, **more).strip():
        assert time.time() < deadline
        time.sleep(0.2)


def confined(said, user):
    """Assert that a container was what we say it is."""
    assert said.startswith(f"{user}\n"), said
    assert said.count("Read-only file system") == 3, said  # the root, the clone, the models
    assert "writable" in said
    assert "CapEff:\t0000000000000000" in said
    assert "CapBnd:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    assert "\nlo\n" in said
    assert "eth" not in said
    assert "\n8\n" in said.replace(" ", "")  # GB of shared memory
    assert said.endswith("dumb-init\n")


def test_podman_confines(bare, clone):
    said = ok([clone / "docker/runtime/run", "shell"], env=bare, input=f"cd '{clone}'\n{PROBE}")
    confined(said, os.getuid())
    assert (clone / "output/made").exists()
    assert (clone / ".cache/made").exists()


def test_the_tutorials_folders_resolve_inside(bare, clone):
    said = ok([clone / "docker/runtime/run", "shell"], env=bare, input="pwd\nmkdir -p /root/autodl-tmp/ft-learn\n")
    assert said.strip() == "/root"
    assert (clone / "output/page/root/autodl-tmp/ft-learn").is_dir()


def test_the_whole_pipeline_inside(bare, clone):
    """Without a network, but for the container that makes the model; short, so the plan's refusal is overridden.

    Once ended by Ctrl-C, as a terminal does it: no container stays, and the same command goes on, detached. Its
    terminal is closed, and another container watches it to the end.
    """
    words = [clone / "docker/runtime/run", "demo", "tiny", "--force", "train.max_epochs=2"]
    said = stopped(words, bare, clone, signal.SIGINT, os.killpg, r"training [2-5]\d/66")
    assert "not here yet: fetching it" in said
    assert_no_container(["podman", "ps", "--all", "--quiet"], env=bare)
    child, end = terminal(*words, "--detach", **bare)
    assert "you can close this terminal" in read_until(end, "code ")
    os.close(end)
    os.waitpid(child, 0)
    followed = run([clone / "docker/runtime/run", "watch", "tiny"], env=bare)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "exit code 0: done" in followed.stdout
    manifest = json.loads((clone / "output/tiny/run.json").read_text(encoding="utf-8"))
    assert manifest["stages"]["train"]["figures"]["resumed_from"] > 0
    assert set(manifest["stages"]) == {"data", "plan", "config", "model", "train", "adapter", "merge", "chat", "eval"}
    identity = ok(["podman", "image", "inspect", "--format", "{{.Id}}", bare["RECIPE_IMAGE"]], env=bare).strip()
    assert manifest["host"]["image"] == identity
    again = run([clone / "docker/runtime/run", "chat", "tiny", "你好"], env=bare)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip(), again.stderr


def test_exit_codes_come_through(bare, clone, tmp_path):
    wrong = run([clone / "docker/runtime/run", "data", "nonsense"], env=bare)
    assert wrong.returncode == 2
    assert "nonsense" in wrong.stderr
    lacking = run(
        [clone / "docker/runtime/run", "train", "coach", "data.files=data/workplace.xlsx", "data.sha256="], env=bare
    )
    assert lacking.returncode == 3
    assert "needs an NVIDIA GPU" in lacking.stderr


def test_files_that_are_named_are_seen_wherever_they_lie(bare, clone, tmp_path):
    """On the command line, in a recipe file elsewhere, behind a link in data/; and --output elsewhere."""
    folder = tmp_path / '引 "号", x'
    folder.mkdir()
    book = folder / "问 答.csv"
    book.write_text("q,a\n问题一,答案一\n", encoding="utf-8")
    plain = tmp_path / "a b.csv"
    shutil.copy(str(book), str(plain))
    for override in (f"data.files={book}", f"data.files={plain}", f'data.files=["{plain}", "data/workplace.xlsx"]'):
        done = run([clone / "docker/runtime/run", "data", "tiny", override, "--output", folder / "out"], env=bare)
        assert done.returncode == 0, done.stderr
        assert (folder / "out/tiny/dataset.jsonl").is_file()
        shutil.rmtree(str(folder / "out"))
    for word in (book, plain):  # in place of a recipe
        done = run([clone / "docker/runtime/run", "data", word, "--output", folder / "out"], env=bare)
        assert done.returncode == 0, done.stderr
        assert (folder / "out" / word.stem / "dataset.jsonl").is_file()
    recipe = tmp_path / "mine.toml"
    text = (clone / "recipe/tiny.toml").read_text(encoding="utf-8")
    recipe.write_text(re.sub(r"(?m)^files = .*", f'files = ["{plain}"]', text), encoding="utf-8")
    assert run([clone / "docker/runtime/run", "data", recipe], env=bare).returncode == 0
    (clone / "data/link.csv").symlink_to(plain)
    assert run([clone / "docker/runtime/run", "data", "data/link.csv"], env=bare).returncode == 0
    assert run([clone / "docker/runtime/run", "data", "tiny", "data.files=data/link.csv"], env=bare).returncode == 0
    relative = os.path.relpath(str(plain), str(clone))
    assert run([clone / "docker/runtime/run", "data", "tiny", f"data.files={relative}"], env=bare).returncode == 0
    assert run([clone / "docker/runtime/run", "data", f"--recipe={recipe}"], env=bare).returncode == 0
    gone = run([clone / "docker/runtime/run", "data", "tiny", f"data.files={tmp_path}/none.csv"], env=bare)
    assert gone.returncode == 2
    assert "no workbook" in gone.stderr


def test_what_is_written_may_lie_behind_links(bare, clone, tmp_path):
    """--output, --png (twice: the file is there then) and the private folder."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    elsewhere = {**bare, "RECIPE_CACHE": str(tmp_path / "link" / "cache")}
    plan = ["plan", "tiny", "--output", tmp_path / "link/out", "--png", tmp_path / "link/out/curve.png"]
    for words, env in ((["data", "tiny"], elsewhere), (plan, bare), (plan, bare)):
        done = run([clone / "docker/runtime/run", *words], env=env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "disk/cache/home").is_dir()
    assert (tmp_path / "disk/out/curve.png").stat().st_size
    refused = run([clone / "docker/runtime/run", "plan", "tiny", "--png", "curve.png"], env=bare)
    assert refused.returncode == 3
    assert "output/" in refused.stderr


def test_a_model_of_links_is_seen(bare, clone, tmp_path):
    """As Hugging Face's cache holds one: a folder of links to files elsewhere."""
    made = json.loads(
        ok([clone / "docker/runtime/run", "model", "tiny"], env=bare) and (clone / "output/tiny/run.json").read_text()
    )
    real = clone / made["stages"]["model"]["figures"]["folder"]
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (file for file in real.iterdir() if file.is_file()):
        shutil.copy(str(file), str(blobs / file.name))
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    done = run([clone / "docker/runtime/run", "model", "tiny", f"model.path={snapshot}"], env=bare)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_does_not_answer(clone, tmp_path):
    stub = tmp_path / "docker"
    stub.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    stub.chmod(0o755)
    env = {"RUNTIME": "docker", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECIPE_CACHE": ""}
    done = run([clone / "docker/runtime/run", "data", "tiny"], env=env)
    assert done.returncode == 3
    assert "docker does not answer" in done.stderr
    wrong = run([clone / "docker/runtime/run", "data", "tiny"], env={**env, "GPUS": "0"})
    assert wrong.returncode == 3
    assert "GPUS=0 is not known" in wrong.stderr


def test_packages_that_do_not_fit_are_told(tmp_path):
    """What the image's build asks: all that overrides.txt does not name must fit."""
    stub = tmp_path / "uv"
    told = "Checked 231 packages\nThe package `{}` requires `{}`, but `1.0` is installed"
    stub.write_text('#!/bin/sh\n[ -z "$TOLD" ] || echo "$TOLD" >&2\nexit 1\n')
    stub.chmod(0o755)
    for said, code in [
        (told.format("modelscope", "datasets>=2.8.0,<=2.13.0"), 0),
        (told.format("pandas", "numpy>=9"), 1),
        ("", 3),
    ]:
        done = run([ROOT / "docker/runtime/host", "check"], env={"UV": str(stub), "TOLD": said})
        assert done.returncode == code, (said, done.stderr)


def test_a_model_folder_behind_a_link_is_found(bare, clone, tmp_path):
    shutil.rmtree(str(clone / "models"), ignore_errors=True)
    (tmp_path / "big disk").mkdir()
    (clone / "models").symlink_to(tmp_path / "big disk")
    done = run([clone / "docker/runtime/run", "model", "tiny"], env=bare)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "big disk").glob("tiny-*"))
    (clone / "models").unlink()


@pytest.mark.parametrize(
    ("engine", "sign", "whom"),
    [
        ("podman", signal.SIGTERM, os.kill),  # as a supervisor does: docker/runtime/run alone
        ("docker", signal.SIGINT, os.killpg),  # as a terminal does
        ("docker", signal.SIGTERM, os.kill),
    ],
)
def test_a_signal_ends_it_and_leaves_no_container(engine, sign, whom, clone, long, request):
    env = request.getfixturevalue("bare") if engine == "podman" else built(request.getfixturevalue("dockerd")[0])
    words = [
        clone / "docker/runtime/run",
        "plan",
        "tiny",
        f"data.files={long}",
        "--output",
        f"output/{engine}-{sign.name}",
    ]
    stopped(words, env, clone, sign, whom, "540000 rows")
    assert_no_container([engine, "ps", "--all", "--quiet"], env=env)


def test_podmans_gpu_comes_by_cdi(bare, clone, tmp_path):
    spec = Path("/etc/cdi/recipe-test.json")
    if list(spec.parent.glob("*")):
        pytest.skip("this machine has CDI specifications of its own")
    lacking = run([clone / "docker/runtime/run", "data", "tiny"], env={**bare, "GPUS": "all"})
    assert lacking.returncode == 126
    assert "unresolvable CDI devices" in lacking.stderr
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '0, GPU-0, NVIDIA GeForce RTX 3090, 24576, 24000, 525.60.13, Default, [N/A], 8.6'\n"
    )
    tool.chmod(0o755)
    mount = {"hostPath": str(tool), "containerPath": "/usr/bin/nvidia-smi", "options": ["ro", "bind"]}
    devices = [{"name": "all", "containerEdits": {"mounts": [mount]}}]
    driver = tmp_path / "root"  # a machine with a driver and the same specifications
    (driver / "dev").mkdir(parents=True)
    (driver / "dev/nvidiactl").touch()
    was_there = spec.parent.exists()
    spec.parent.mkdir(exist_ok=True)
    (driver / "etc").mkdir()
    (driver / "etc/cdi").symlink_to(spec.parent)
    try:
        # What NVIDIA Container Toolkit 1.19 adds is beyond podman before 5.1, and docker/runtime/examine says so.
        with_gids = [{"name": "all", "containerEdits": {"mounts": [mount], "additionalGids": [44]}}]
        spec.write_text(json.dumps({"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "devices": with_gids}))
        examined = run([clone / "docker/runtime/choose", "--verdicts"], env={**bare, "DOCTOR_ROOT": str(driver)})
        refused = run([clone / "docker/runtime/run", "data", "tiny"], env={**bare, "GPUS": "all"})
        assert ("unresolvable CDI devices" in refused.stderr) is ("engine\tpodman\tgids\t" in examined.stdout)
        spec.write_text(json.dumps({"cdiVersion": "0.4.0", "kind": "nvidia.com/gpu", "devices": devices}))
        done = run(
            [clone / "docker/runtime/run", "data", "tiny", "--output", "output/gpu"], env={**bare, "GPUS": "all"}
        )
        assert done.returncode == 0, done.stderr
    finally:
        spec.unlink()
        was_there or spec.parent.rmdir()
    manifest = json.loads((clone / "output/gpu/tiny/run.json").read_text(encoding="utf-8"))
    assert manifest["host"]["gpus"][0]["name"] == "NVIDIA GeForce RTX 3090"


def test_docker_runs_the_same(dockerd, clone):
    """With `--gpus all` through a stub of NVIDIA's hook, and what docker says without it."""
    variables, with_hook = dockerd
    env = built(variables)
    lacking = run([clone / "docker/runtime/run", "data", "tiny"], env={**env, "GPUS": "all"})
    assert lacking.returncode == 125
    assert "could not select device driver" in lacking.stderr
    with_hook()
    done = run([clone / "docker/runtime/run", "data", "tiny", "--output", "output/docker"], env={**env, "GPUS": "all"})
    assert done.returncode == 0, done.stderr
    said = ok([clone / "docker/runtime/run", "shell"], env=env, input=f"cd '{clone}'\n{PROBE}")
    confined(said, os.getuid())
    assert run([clone / "docker/runtime/run", "data", "nonsense"], env=env).returncode == 2


def test_a_detached_training_is_watched_stopped_and_resumed_under_docker(dockerd, clone):
    """Each look at it is another container; its terminal is closed. The same command goes on to the end."""
    env = built(dockerd[0])
    words = [clone / "docker/runtime/run", *WORDS, "--output", "output/detached"]
    folder = clone / "output/detached/tiny"
    for asked in (["watch", "stop"], ["watch"]):
        child, end = terminal(*words, "--detach", **env)
        assert "you can close this terminal" in read_until(end, "code ")
        os.close(end)
        os.waitpid(child, 0)
        with contextlib.ExitStack() as ended:
            looks = [
                ended.enter_context(
                    subprocess.Popen(
                        [str(clone / "docker/runtime/run"), what, "output/detached/tiny"], env={**os.environ, **env},
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=str(clone), text=True,
                    )
                )
                for what in asked
            ]  # fmt: skip
            said = [look.communicate(timeout=300)[0] for look in looks]
        assert [look.returncode for look in looks] == [0] * len(asked), said
        assert len({text.splitlines()[-1] for text in said}) == 1, said
        if "stop" in asked:
            assert "exit code 0: Stopped as asked (SIGTERM). The checkpoint of iteration" in said[0]
            assert not (folder / "adapter").exists()
    assert "exit code 0: done" in said[0]
    assert "training" in said[0]
    assert json.loads((folder / "run.json").read_text("utf-8"))["stages"]["train"]["figures"]["resumed_from"] > 0
    assert (folder / "adapter/adapter_model.safetensors").is_file()
    assert_no_container(["docker", "ps", "--all", "--quiet"], env=env)


def test_any_user_may_run_it(dockerd, clone, tmp_path):
    """What is written belongs to who called, and what a group shares with that user is read: an `id` of ours stands for
    another user who may use the daemon.
    """
    env = built(dockerd[0])
    stub = tmp_path / "id"
    stub.write_text('#!/bin/sh\ncase $* in -G) echo 4711 4712 ;; -?) echo 4711 ;; *) exec /usr/bin/id "$@" ;; esac\n')
    stub.chmod(0o755)
    shared = tmp_path / "shared.csv"
    shared.write_text("q,a\n问题一,答案一\n", encoding="utf-8")
    shared.chmod(0o640)
    os.chown(str(shared), 0, 4712)
    tmp_path.chmod(0o755)
    output, cache = tmp_path / "out", tmp_path / "cache"
    for folder in (output, cache):
        folder.mkdir()
        os.chown(str(folder), 4711, 4711)
    env = {**env, "PATH": f"{tmp_path}{os.pathsep}{env['PATH']}", "RECIPE_CACHE": str(cache)}
    done = run([clone / "docker/runtime/run", "data", "tiny", f"data.files={shared}", "--output", output], env=env)
    assert done.returncode == 0, done.stderr
    assert (output / "tiny/dataset.jsonl").stat().st_uid == 4711


def test_a_proxy_on_this_machine_is_reached_while_fetching(dockerd, clone):
    """As Clash and `ssh -L` listen: on 127.0.0.1, which in a container with a network of its own is the container."""
    env = built(dockerd[0])
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(5)
        env["https_proxy"] = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        ask = f"(exec 3<>/dev/tcp/127.0.0.1/{proxy.getsockname()[1]}) && echo reached || echo not\n"
        for fetch, answer in (("model", "reached"), ("no", "not")):
            said = ok([clone / "docker/runtime/docker", "shell"], env={**env, "RECIPE_FETCH": fetch}, input=ask)
            assert said.strip() == answer


@pytest.fixture(scope="module")
def someone(registry):
    """An ordinary user with podman: (words before a command, environment, home).

    What podman reads from /etc is our own, and the locked packages lie in folders that this user may enter; both
    by mounts that only these commands see.
    """
    if not shutil.which("newuidmap") or not shutil.which("podman"):
        pytest.skip(f"podman without root needs uidmap: {ENGINES}")
    home, name = Path(tempfile.mkdtemp(prefix="recipe-")), f"recipe-{os.getpid()}"
    ok(["useradd", "--home-dir", home, name])
    try:
        for folder in ("run", "etc/registries.conf.d", "env", *(folder.name for folder, _ in further())):
            (home / folder).mkdir(parents=True)
        (home / "etc/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        shutil.copy(str(registry[1]), str(home / "etc/registries.conf"))
        (home / "containers.conf").write_text(
            '[containers]\nnetns = "host"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        (home / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
        ok(["chown", "-R", f"{name}:", home])
        (home / "run").chmod(0o700)
        mounts = f"mount --bind {home}/etc /etc/containers && mount --bind {ENVIRONMENT} {home}/env"
        mounts += "".join(f" && mount --bind {folder} {home}/{folder.name}" for folder, _ in further())
        before = ["unshare", "--mount", "--propagation", "shared", "sh", "-c", f'{mounts} && exec "$@"', "sh",
                  "setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", "--"]  # fmt: skip
        variables = {
            "HOME": str(home), "USER": name, "XDG_RUNTIME_DIR": str(home / "run"), "RUNTIME": "podman", "TORCH": "pypi",
            # Ours may be set (recipe.__main__ does so where a test imports it), and podman looks for short names there.
            "XDG_CACHE_HOME": str(home / ".cache"),
            "CONTAINERS_CONF": str(home / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "RECIPE_CACHE": "", "DOCTOR": "off",
            "RUN_OPTIONS": f"--volume {home}/env:{ENVIRONMENT}:ro --env RECIPE_ENV={ENVIRONMENT} "
            + "".join(f" --volume {home}/{folder.name}:{place}:ro" for folder, place in further()),
        }  # fmt: skip
        tried = run([*before, "podman", "info"], env=variables, cwd=home)
        if tried.returncode:
            pytest.skip(f"NO ROOTLESS TEST: this machine lets no ordinary user run podman: {tried.stderr[-400:]}")
        yield before, variables, home
    finally:
        with contextlib.suppress(OSError):  # podman's, which holds its namespaces
            os.kill(int((home / "run/libpod/tmp/pause.pid").read_text()), signal.SIGKILL)
        run(["userdel", "--force", name])
        shutil.rmtree(str(home), ignore_errors=True)


def digest_in(address, tag):
    """Under which digest the registry itself has it."""
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    asked = urllib.request.Request(f"http://{address}/v2/me/recipe/manifests/{tag}", headers={"Accept": kinds})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return answer.headers["Docker-Content-Digest"]


def test_published_and_run_by_an_ordinary_user(bare, registry, someone, long):
    """Pushed by one podman, fetched by its digest by that of a user without rights, and run there."""
    address, known = registry
    before, env, home = someone
    place = copy_of_the_clone(home)
    pushed = ok([place / "docker/image", "push", f"{address}/me/recipe"],
                env={**bare, "CONTAINERS_REGISTRIES_CONF": str(known)})  # fmt: skip
    published = (place / "output/image/published").read_text().strip()
    assert pushed.strip().splitlines()[-1] == published
    tag = re.sub("-bare$", "", bare["RECIPE_IMAGE"].split(":")[1])
    assert published == f"{address}/me/recipe@{digest_in(address, tag)}"
    shutil.copy(str(long), str(place / "data"))
    ok(["chown", "-R", f"{env['USER']}:", place.parent])
    ok([*before, place / "docker/image", "pull", published], env=env)

    said = ok([*before, place / "docker/runtime/run", "shell"], env=env, input=f"cd '{place}'\n{PROBE}")
    confined(said, 0)  # of the container alone:
    assert (place / "output/made").owner() == env["USER"]
    assert run([*before, place / "docker/runtime/run", "data", "nonsense"], env=env).returncode == 2
    assert run([*before, place / "docker/runtime/run", "data", "tiny"], env=env).returncode == 0
    assert (place / "output/tiny/dataset.jsonl").owner() == env["USER"]
    words = [
        *before,
        place / "docker/runtime/run",
        "plan",
        "tiny",
        "data.files=data/long.csv",
        "--output",
        "output/long",
    ]
    made = run([*before, place / "docker/runtime/run", "model", "tiny"], env=env)
    assert made.returncode == 0, made.stderr
    stopped(words, env, place, signal.SIGINT, os.killpg, "540000 rows")
    assert_no_container([*before, "podman", "ps", "--all", "--quiet"], env=env)


def tree(variables, name, file):
    """What an image's files are: (kind, mode, owner, target or content), and the time."""
    engine = variables["RUNTIME"]
    holder = ok([engine, "create", name, "true"], env=variables).strip()
    ok([engine, "export", "--output", file, holder], env=variables)
    ok([engine, "rm", holder], env=variables)
    found = {}
    with tarfile.open(str(file)) as archive:
        for member in archive:
            content = hash(archive.extractfile(member).read()) if member.isfile() else member.linkname
            found[member.name] = ((member.type, member.mode, member.uid, member.gid, content), int(member.mtime))
    Path(file).unlink()
    for laid in (".dockerenv", "dev", "dev/console", "etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"):
        found.pop(laid, None)  # by `create`
    return found


def test_two_builds_hold_the_same(bare, dockerd, standin, tmp_path):
    """One by podman, one by docker, file for file, and none bears the day's time. (Debian's packages are the day's.)"""
    first = tree(bare, bare["RECIPE_IMAGE"], tmp_path / "first.tar")
    env = built(dockerd[0])
    second = tree(env, env["RECIPE_IMAGE"], tmp_path / "second.tar")
    assert {name for name in {**first, **second} if first.get(name, [0])[0] != second.get(name, [0])[0]} == set()
    assert len(first) > 5000
    labels = json.loads(ok(["podman", "image", "inspect", bare["RECIPE_IMAGE"]], env=bare))[0]["Labels"]
    commit = time.strptime(labels["org.opencontainers.image.created"], "%Y-%m-%dT%H:%M:%SZ")
    with tarfile.open(str(standin)) as archive:
        base = {os.path.normpath(member.name): int(member.mtime) for member in archive}
    for found in (first, second):
        assert not [
            name for name, (_, when) in found.items() if when > calendar.timegm(commit) and base.get(name) != when
        ]


def test_what_the_image_is_labelled_with(bare):
    found = json.loads(ok(["podman", "image", "inspect", bare["RECIPE_IMAGE"]], env=bare))[0]
    labels, config = found["Labels"], found["Config"]
    lock = LOCK.read_text(encoding="utf-8")
    for package in ("torch", "xtuner", "transformers", "deepspeed", "bitsandbytes"):
        assert labels[f"internlm2-recipe.{package}"] == re.search(rf"(?m)^{package}==(\S+)", lock)[1]
    assert labels["org.opencontainers.image.version"] in bare["RECIPE_IMAGE"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["User"] == "1000:1000"


@pytest.fixture
def small(dockerd, podman, tmp_path):
    """An image of one file with our label: environments for podman, which has it, and docker, which does not."""
    (tmp_path / "file").write_text("x")
    with tarfile.open(str(tmp_path / "small.tar"), "w") as archive:
        archive.add(str(tmp_path / "file"), "file")
    tag = ok([ROOT / "docker/image", "name"], env={"TORCH": "pypi"}).strip().split(":")[1]
    label = f"LABEL org.opencontainers.image.version={tag}"
    ours = {"RECIPE_IMAGE": "small:1", "TORCH": "pypi"}
    ok(["podman", "import", "--change", label, tmp_path / "small.tar", "small:1"], env=podman)
    return {**podman, **ours}, {**dockerd[0], **ours}, tag


def test_save_and_load(small, clone, tmp_path):
    """One file for slow links, what podman wrote for docker too; an image of another clone is told from ours."""
    podman, docker, _ = small
    file = tmp_path / "small image.tar.gz"
    ok([clone / "docker/image", "save", file], env=podman)
    ok(["podman", "rmi", "--force", "small:1"], env=podman)
    ids = set()
    for env in (podman, docker):
        ok([clone / "docker/image", "load", file], env=env)
        ids.add(
            ok([env["RUNTIME"], "image", "inspect", "--format", "{{.Id}}", "small:1"], env=env).replace("sha256:", "")
        )
        other = run([clone / "docker/image", "load", file], env={**env, "RECIPE_IMAGE": "internlm2-recipe:other"})
        assert other.returncode == 3
        assert "another image" in other.stderr
    assert len(ids) == 1


def test_published_by_docker(small, registry, clone, tmp_path):
    """And fetched again, by tag and by digest; what is another clone's, or not there, is refused."""
    podman, docker, tag = small
    address, known = registry
    podman = {**podman, "CONTAINERS_REGISTRIES_CONF": str(known)}
    ok(["docker", "import", "--change", f"LABEL org.opencontainers.image.version={tag}", tmp_path / "small.tar",
        "small:1"], env=docker)  # fmt: skip
    ok([clone / "docker/image", "push", f"{address}/me/recipe"], env=docker)
    published = (clone / "output/image/published").read_text().strip()
    assert published == f"{address}/me/recipe@{digest_in(address, tag)}"
    for env, name in ((docker, published), (docker, f"{address}/me/recipe"), (podman, published)):
        ok([env["RUNTIME"], "rmi", "--force", "small:1"], env=env)
        ok([clone / "docker/image", "pull", name], env=env)
        ok([env["RUNTIME"], "image", "inspect", "small:1"], env=env)
    ok(["docker", "import", tmp_path / "small.tar", f"{address}/me/other:{tag}"], env=docker)
    ok(["docker", "push", f"{address}/me/other:{tag}"], env=docker)
    for name, said in (("other", "without a version"), ("none", "could not be fetched")):
        refused = run([clone / "docker/image", "pull", f"{address}/me/{name}"], env=docker)
        assert refused.returncode == 3
        assert said in refused.stderr


def test_where_the_bytes_are(bare, clone):
    """`sizes` lists megabytes; in the image without an environment, those of /usr and the tools."""
    said = ok([clone / "docker/image", "sizes"], env=bare)
    sizes = {path: int(size) for size, path in re.findall(r"(?m)^(\d+)\t(\S+)$", said)}
    assert sizes["/usr"] > 100
    assert 10 < sizes["/opt/recipe/tools"] < sizes["/usr"]


def test_the_whole_image(podman):
    """Built, and `just image check`: 8 minutes, so only where Dockerfile or locks are not checked.txt's."""
    env = {**podman, "REGISTRY": "localhost", "BASE_IMAGE": "standin:1", "TORCH": "pypi"}
    tag = ok([ROOT / "docker/image", "name"], env=env).strip().split(":")[1]
    for line in (ROOT / "docker/locks/checked.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{tag} "):
            pytest.skip(f"the whole image was built and checked: {line}")
    free = shutil.disk_usage(env["CONTAINERS_STORAGE_CONF"]).free / 1e9
    if free < 40:
        pytest.skip(f"THE WHOLE IMAGE {tag} WAS NEVER CHECKED: 40 GB are needed, {free:.0f} are free")
    ok([ROOT / "docker/image", "build"], env=env, timeout=3600)
    assert f"checked: {tag} " in ok([ROOT / "docker/image", "check"], env=env, timeout=3600)


def in_image(env, *words):
    run_it = ["podman", "run", "--rm", "--network", "none", "--cap-drop", "ALL", *env["RUN_OPTIONS"].split()]
    return ok([*run_it, env["RECIPE_IMAGE"], *words], env=env)


def test_the_image_has_what_training_needs(bare):
    """As `just image check` tries it; with this machine's environment in the small image."""
    said = in_image(bare, "docker/runtime/host", "selftest")
    assert re.findall(r"(?m)^(\w+)\t(\w+)", said) == [
        ("ok", name) for name in ("bitsandbytes", "compiler", "kernels", "deepspeed")
    ]


def test_the_image_of_cu13_compiles(podman):
    """What Triton compiles when it first runs: C, with Python's headers. Whichever variant is tested here."""
    trial = "from recipe.core import compiler; compiler.find_spec = lambda name: name; print([compiler.fault()])"
    assert in_image(built(podman, VARIANT="cu13"), "python3", "-c", trial).strip() == "['']"


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["nonsense"], {}, "no such action"),
        (["load", "none.tar.gz"], {}, "There is no file"),
        (["save"], {}, "just image save internlm2-recipe.tar.gz"),
        (["build"], {"RUNTIME": "host"}, "not by RUNTIME=host"),
        (["build"], {"VARIANT": "cu118", "TORCH": "cu999"}, "TORCH=cu999 is not known"),
        (["build", "devel"], {"VARIANT": "cu13"}, "devel has CUDA 11.8's compiler"),
    ],
)
def test_the_image_commands_mistakes(words, env, said):
    stub = {"RUNTIME": "podman", **env}
    done = run([ROOT / "docker/image", *words], env=stub)
    assert done.returncode == (2 if words == ["nonsense"] else 3), done.stderr
    assert said in done.stderr, done.stderr


def test_the_engine_is_the_one_that_the_stages_take(tmp_path):
    """One that cannot hand the GPU on is passed over, where another can."""
    for engine, answer in (("docker", "24.0.7|Linux|runc"), ("podman", "4.3.1")):
        stub = tmp_path / engine
        stub.write_text(f'#!/bin/sh\n[ "$1" = info ] && echo "{answer}" && exit\necho "{engine} $*"; exit 1\n')
        stub.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECIPE_CACHE": str(tmp_path)}
    env.update(RUNTIME="", VARIANT="cu118", TORCH="pypi", DOCKER_HOST="", DOCTOR_ROOT=str(tmp_path))
    pull = [ROOT / "docker/image", "pull", "me/recipe"]
    assert run(pull, env=env).stdout.startswith("docker pull me/recipe:cu118-pypi-")
    for file in (tmp_path / "dev/nvidiactl", tmp_path / "etc/cdi/nvidia.yaml"):
        file.parent.mkdir(parents=True)
        file.write_text("kind: nvidia.com/gpu\n")
    assert run(pull, env=env).stdout.startswith("podman pull me/recipe:cu118-pypi-")


@pytest.mark.parametrize("card", [True, False])
def test_check_trains_on_a_card_where_there_is_one(clone, tmp_path, card):
    """No card here: a stub of podman records what the image is asked to do."""
    packages = "".join(f"{line.split()[0]}\n" for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line)
    (tmp_path / "packages").write_text(packages)
    stub = tmp_path / "podman"
    stub.write_text(
        f"""#!/bin/sh
echo "$*" >>{tmp_path}/asked
case $1 in
    info) echo 4.3.1 ;;
    create) echo holder ;;
    cp) cp {tmp_path}/packages "$3" ;;
    image) case $* in *Id*) echo sha256:0 1000000 ;; *) echo 1000000 ;; esac ;;
    run) case $* in *xtuner*) sed -n 's/^xtuner==//p' {tmp_path}/packages ;; esac ;;
esac
"""
    )
    stub.chmod(0o755)
    for file in ("dev/nvidiactl", "etc/cdi/nvidia.yaml") if card else ():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("kind: nvidia.com/gpu\n")
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RUNTIME": "podman", "DOCTOR_ROOT": str(tmp_path)}
    env.update(VARIANT="cu13" if LOCK.name == "cu13.lock" else "cu118", TORCH="pypi")
    said = ok([clone / "docker/image", "check"], env=env)
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("run ")]
    assert [line for line in asked if line.endswith("docker/runtime/host selftest")]
    trained = [line for line in asked if "just train tiny" in line]
    assert [re.search(r"train\.speed=(\w+)", line)[1] for line in trained] == (["fast", "stock"] if card else [])
    assert all("--device nvidia.com/gpu=all" in line and "train.method=qlora" in line for line in trained)
    assert ("was not tried" in said) != card
    # What is trained there is ten iterations of the tiny model.
    if card:
        words = trained[0].partition("just train ")[2].split()
        planned = run(
            [ROOT / "docker/runtime/run", "plan", *words, "--output", tmp_path / "out"], env={"RUNTIME": "host"}
        )
        assert planned.returncode == 0, planned.stderr
        assert "10 iterations" in planned.stdout


def test_apptainer_is_told_the_same(tmp_path):
    """No apptainer here: a stub records how it would be called."""
    stub = tmp_path / "apptainer"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    sif = tmp_path / "image.sif"
    env = {"RUNTIME": "apptainer", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECIPE_CACHE": str(tmp_path)}
    lacking = run([ROOT / "docker/runtime/run", "plan", "tiny"], env=env)
    assert lacking.returncode == 3
    assert "just image save" in lacking.stderr
    sif.touch()
    said = ok([ROOT / "docker/runtime/run", "plan", "tiny"], env={**env, "RECIPE_IMAGE": str(sif)})
    assert "--network\nnone\n" in said
    assert f"{ROOT}:{ROOT}:ro" in said
    assert f"{ROOT}/models:ro" in said
    assert said.endswith(f"{sif}\n{ROOT}/docker/runtime/host\nrun\nplan\ntiny\n")
    together = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}
    assert "--network" not in ok(
        [ROOT / "docker/runtime/run", "plan", "tiny"], env={**env, **together, "RECIPE_IMAGE": str(sif)}
    )
    fetching = ok([ROOT / "docker/runtime/run", "model", "tiny"], env={**env, "RECIPE_IMAGE": str(sif)})
    assert "--network" not in fetching
    assert "models:ro" not in fetching


def test_the_dockerfile_agrees_with_the_locks_and_the_readme():
    lock = (ROOT / "docker/locks/cu118.lock").read_text(encoding="utf-8")
    for name, package in (("PyTorch", "torch"), ("XTuner", "xtuner")):
        assert re.search(rf"{name} ([\d.]+\d)", DOCKERFILE)[1] in re.search(rf"(?m)^{package}==(\S+)", lock)[1]
    assert re.search(r"(?m)^ARG BASE_IMAGE=python:3\.8\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$", DOCKERFILE)
    assert re.search(r"(?m)^# cu13: ARG BASE_IMAGE=python:3\.12\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$", DOCKERFILE)
    assert "# syntax" not in DOCKERFILE
    assert "<<" not in DOCKERFILE  # want a registry, or newer engines
    for script in ROOT.glob("docker/**/*"):
        if (
            script.is_file()
            and script.read_bytes()[:2] == b"#!"
            and script.name not in ("container", "examine", "flavour", "places", "words")
        ):
            assert script.stat().st_mode & stat.S_IXUSR, script


@pytest.fixture
def engines(tmp_path):
    """Environment in which docker, podman and apptainer say what they are asked, and a certificate is set."""
    told = 'printf "%s\\n" "$@"\nenv | grep -E "^(BUILDX|APPTAINERENV_)"'
    bodies = {
        "docker": f"""case $1 in
            info) echo x ;;
            image) echo sha256:1 ;;
            version) echo 29.1.0 ;;
            buildx) exit ${{OLD:-0}} ;;
            *) {told}; case "$*" in *"--file - "*) cat ;; esac ;;
        esac""",
        "podman": f"case $1 in info) echo x ;; image) echo sha256:1 ;; *) {told} ;; esac",
        "apptainer": told,
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "ca.pem").touch()
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "BUILDX_NO_DEFAULT_ATTESTATIONS")
    return {**dict.fromkeys(names, ""), "SSL_CERT_FILE": f"{tmp_path}/ca.pem", "PATH": path, "TORCH": "pypi",
            "RECIPE_IMAGE": "", "RECIPE_CACHE": str(tmp_path / "cache"), "GPUS": "none"}  # fmt: skip


def test_a_networks_certificate_goes_along(engines, tmp_path):
    """Into containers under its own path, by both names; to a build as a secret, which does not stay."""
    file = engines["SSL_CERT_FILE"]
    for engine in ("docker", "podman"):
        env = {**engines, "RUNTIME": engine, "RECIPE_IMAGE": "ours:1"}
        said = ok([ROOT / "docker/runtime/run", "model", "tiny"], env=env).splitlines()
        assert f"type=bind,source={file},target={file},readonly" in said
        assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"} < set(said)
        build = ok([ROOT / "docker/image", "build", "bare"], env={**env, "RECIPE_IMAGE": ""}).splitlines()
        assert f"id=certificates,src={file}" in build
    (tmp_path / "image.sif").touch()
    env = {**engines, "RUNTIME": "apptainer", "RECIPE_IMAGE": str(tmp_path / "image.sif")}
    said = ok([ROOT / "docker/runtime/run", "model", "tiny"], env=env).splitlines()
    assert f"{file}:{file}:ro" in said
    assert {f"APPTAINERENV_{name}={file}" for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")} < set(said)
    for stage in re.findall(r"(?m)^RUN .*(?:justw|docker/runtime/host env)", DOCKERFILE.replace("\\\n", "")):
        assert stage.startswith("RUN --mount=type=secret,id=certificates ")
    assert DOCKERFILE.count("RUN --mount=type=secret,id=certificates ") == 2


def test_a_local_build_has_no_provenance(engines):
    """It bears the time: with containerd's store each build would have an id of its own. What is published keeps it."""
    build, env = [ROOT / "docker/image", "build", "bare"], {**engines, "RUNTIME": "docker"}
    assert "BUILDX_NO_DEFAULT_ATTESTATIONS=1" in ok(build, env=env).splitlines()
    kept = ok(build, env={**env, "BUILDX_NO_DEFAULT_ATTESTATIONS": "0"}).splitlines()
    assert "BUILDX_NO_DEFAULT_ATTESTATIONS=0" in kept
    workflow = yaml.safe_load((ROOT / ".github/workflows/image.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["image"]["env"]["BUILDX_NO_DEFAULT_ATTESTATIONS"] == "0"


def test_the_old_builder_takes_the_dockerfile_without_secrets(engines):
    """docker from 23 on without buildx; it would refuse RUN --mount, and is not handed the certificate."""
    done = run([ROOT / "docker/image", "build", "bare"], env={**engines, "RUNTIME": "docker", "OLD": "1"})
    assert done.returncode == 0, done.stderr
    assert "--secret" not in done.stdout
    assert "RUN if [ -s /run/secrets/certificates ]" in done.stdout
    assert "--mount" not in done.stdout
    assert "docker-buildx" in done.stderr
