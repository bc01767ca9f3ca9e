"""The page's port in a container."""

import getpass
import os
import socket
import subprocess

from support.command import ROOT
from support.ports import free_port

# --- in containers ---


def test_a_container_publishes_one_port_on_loopback(tmp_path):
    """No engine here: a stub records how it would be called."""
    stub = '#!/bin/sh\ncase $1 in image) echo sha256:1 ;; info) ;; run) printf "%s\\n" "$@" ;; esac\n'
    for engine in ("docker", "podman", "apptainer"):
        (tmp_path / engine).write_text(stub if engine != "apptainer" else '#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / engine).chmod(0o755)
    (tmp_path / "image.sif").touch()
    port = free_port()
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECIPE_CACHE": str(tmp_path)}

    def called(engine, *given):
        image = str(tmp_path / "image.sif") if engine == "apptainer" else "some:1"
        return subprocess.run(
            [str(ROOT / "docker/runtime/run"), *given], env={**env, "RUNTIME": engine, "RECIPE_IMAGE": image},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    for engine in ("docker", "podman"):
        done = called(engine, "web", "tiny", f"port={port}")
        assert done.returncode == 0, done.stderr
        assert f"--publish\n127.0.0.1:{port}:{port}\n" in done.stdout
        assert f"WEB_PUBLISHED={getpass.getuser()}@{socket.gethostname()}\n" in done.stdout  # for the ssh hint
        assert "--network" not in done.stdout
        assert f"{ROOT}/models,readonly" in done.stdout
    assert "--publish\n0.0.0.0:8599:8599\n" in called("docker", "web", "host=0.0.0.0", "port=8599", "token=x").stdout
    assert "--publish" not in called("docker", "chat", "tiny").stdout
    assert "--network\nnone\n" in called("docker", "chat", "tiny").stdout
    assert "--network" not in called("apptainer", "web", "tiny").stdout
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        done = called("docker", "web", "tiny", f"port={port}")
        assert done.returncode == 3
        assert f"Port {port} " in done.stderr
        assert "port=8502" in done.stderr
