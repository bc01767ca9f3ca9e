"""compose.yaml and .devcontainer/: valid, and their containers those of docker/runtime/docker for the same command."""

import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.command import ROOT

DEVCONTAINER = ROOT / ".devcontainer/devcontainer.json"
USER = "4711:4712"
# Options of `docker run` that take no value.
FLAGS = {"--rm", "--interactive", "--tty", "--read-only"}


def compose(**variables):
    """compose.yaml's services as compose reads them: anchors resolved, then variables put in."""

    def value(found):
        name, kind, default = found[1], found[2], found[3] or ""
        return variables[name] if kind == ":?" else variables.get(name) or default

    def put(part):
        if isinstance(part, dict):
            return {name: put(one) for name, one in part.items()}
        if isinstance(part, list):
            return [put(one) for one in part]
        while isinstance(part, str) and "${" in part:  # the innermost first
            part = re.sub(r"\$\{(\w+)(?:(:[-?])([^}$]*))?\}", value, part)
        return part

    return put(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"])


SERVICES = compose(PWD="/clone", RECIPE_IMAGE="image")


@pytest.fixture
def called(tmp_path):
    """Function: the options and the words with which docker/runtime/docker starts a container for a command."""
    folder = tmp_path / "programs"
    folder.mkdir()
    docker, ids = folder / "docker", folder / "id"
    docker.write_text(
        '#!/bin/sh\ncase "$*" in "info"*) echo name=seccomp; exit ;; "image inspect"*) echo sha256:1; exit ;; esac\n'
        'printf "%s\\n" "$@"\n'
    )
    ids.write_text('#!/bin/sh\ncase $1 in -u) echo 4711 ;; -g | -G) echo 4712 ;; *) exec /usr/bin/id "$@" ;; esac\n')
    for program in (docker, ids):
        program.chmod(0o755)

    def call(gpus, fetch, *words):
        environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RECIPE_IMAGE": "image", "GPUS": gpus,
            "RECIPE_FETCH": fetch, "HOME": str(tmp_path),
            "RECIPE_WORDS": "host\t127.0.0.1\nport\t8501\n" if words[0] == "web" else "command\tx\n",
        }  # fmt: skip
        script = str(ROOT / "docker/runtime/docker")
        done = subprocess.run([script, "run", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        _, *told = done.stdout.splitlines()
        image = told.index("sha256:1")
        return options(told[:image]), told[image + 1 :]

    return call


def options(told):
    """{option: [values]} of docker run's words."""
    found, words = {}, iter(told)
    for word in words:
        found.setdefault(word, []).append("" if word in FLAGS else next(words))
    return found


def mounts(values):
    """{target: (source, read-only)} of --mount's values."""
    found = {}
    for value in values:
        fields = dict(part.partition("=")[::2] for part in value.split(","))
        assert fields["type"] == "bind"
        found[fields["target"]] = (fields["source"], "readonly" in fields)
    return found


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_services_container_is_that_of_the_runtime(name, called):
    service = compose(PWD=str(ROOT), RECIPE_IMAGE="sha256:1", RECIPE_USER=USER, USER=getpass.getuser())[name]
    fetch = service["environment"]["RECIPE_FETCH"]
    words = service["command"][2:]
    told, command = called("all" if "deploy" in service else "none", fetch, *words)
    assert service["command"] == command
    assert [service["user"]] == told["--user"]
    assert service["read_only"] is True
    assert "--read-only" in told
    assert service["cap_drop"] == told["--cap-drop"]
    assert service["security_opt"] == told["--security-opt"]
    assert [service["shm_size"]] == told["--shm-size"]
    assert service["tmpfs"] == told["--tmpfs"]
    assert [service["working_dir"]] == told["--workdir"]
    assert service.get("ports", []) == told.get("--publish", [])
    assert service.get("network_mode") == told.get("--network", [None])[0]
    own = {one["target"]: (one["source"], one.get("read_only", False)) for one in service["volumes"]}
    assert own == mounts(told["--mount"])
    assert ("deploy" in service) == ("--gpus" in told)
    if "deploy" in service:
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert [device["count"]] == told["--gpus"]
        assert device["capabilities"] == ["gpu"]
    known = dict(one.partition("=")[::2] for one in told["--env"] if "=" in one)
    passed = {"RECIPE_FETCH": fetch, "RECIPE_LANG": ""}  # by their names alone
    assert set(service["environment"]) == {*known, *passed}
    for key in set(known) - {"WEB_PUBLISHED"}:
        assert service["environment"][key] == known[key], key


def test_only_fetching_and_the_page_have_a_network():
    open_ones = {name for name, service in SERVICES.items() if service.get("network_mode") != "none"}
    assert open_ones == {"model", "demo-model", "web"}
    assert SERVICES["web"]["ports"] == ["127.0.0.1:8501:8501"]


@pytest.mark.parametrize(("kind", "path"), [("compose", "compose.yaml"), ("devcontainer", str(DEVCONTAINER))])
def test_they_are_valid_by_their_specification(kind, path):
    """By JSON schemas of the fields that the specification names (tests/support/schemas)."""
    schema = f"tests/support/schemas/{kind}.json"
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", schema, path]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_development_container_has_the_runtimes_rights(called):
    """But for what an editor needs: a writable root and clone, and a network."""
    found = json.loads(DEVCONTAINER.read_text(encoding="utf-8"))
    told, _ = called("all", "no", "train", "coach")
    own = options([part for one in found["runArgs"] for part in one.split("=", 1)])
    for name in ("--cap-drop", "--security-opt", "--shm-size", "--tmpfs"):
        assert own.pop(name) == told[name]
    assert not own
    here = found["workspaceFolder"]
    assert mounts([found["workspaceMount"]]) == {here: (here, False)}  # the clone under its own path
    assert found["containerEnv"]["RECIPE_CACHE"] == "${containerWorkspaceFolder}/.cache"
    dockerfile = (DEVCONTAINER.parent / found["build"]["dockerfile"]).resolve()
    assert dockerfile == ROOT / "Dockerfile"
    text = dockerfile.read_text(encoding="utf-8")
    assert f"AS {found['build']['target']}\n" in text
    assert f" {found['containerUser']} " in re.search(r"useradd (?:.*\\\n)?.*", text)[0]
    interpreter = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"RECIPE_ENV={Path(interpreter).parent.parent}\n" in text
    assert (DEVCONTAINER.parent / found["build"]["context"]).resolve() == ROOT


def test_commands_are_stages():
    """The words are read by the command line's own check."""
    for service in SERVICES.values():
        command = [sys.executable, "-m", "recipe.cli.words", *service["command"][2:]]
        done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
