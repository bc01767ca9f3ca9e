"""A machine with an incomplete compiler."""

import pytest

from support.environment import CU13


@pytest.mark.skipif(not CU13, reason="only cu13 compiles")
def test_what_a_compiler_may_lack(compiler, monkeypatch, tmp_path):
    assert compiler.fault() == "there is no C compiler"
    assert "apt-get install gcc libc6-dev" in compiler.notice()
    assert "slower" in compiler.notice()
    for text, said in (("exit 1", "fails to compile"), ("echo 'x.c:1: fatal error: dlfcn.h'; exit 1", "dlfcn.h")):
        (tmp_path / "cc").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
        compiler.fault.cache_clear()
        assert said in compiler.fault()
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    compiler.fault.cache_clear()
    assert "does not start" in compiler.fault()
    monkeypatch.setattr(compiler.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    compiler.fault.cache_clear()
    assert "headers are not in" in compiler.fault()
    assert compiler.remedy() == "apt-get install python3.12-dev"
