"""Shared by the tests: the repository, workbooks made on the spot, one finished demo run, a hub on this machine."""

import hashlib
import os
import signal
from pathlib import Path

import openpyxl
import pytest

from recipe.base_model import download
from recipe.core import host, resumable_download, settings
from recipe.core.run import Run
from support.command import ROOT, recipe
from support.hub_checks import HUB_ID
from support.hub_server import Hub, certificate

# How commands are named in what is printed: the same whether the tests were started by ./justw or not.
os.environ.pop("RECIPE_COMMAND", None)
# And in which language.
os.environ["RECIPE_LANG"] = "en"


# As the command line has it, for what tests call without it: threads that wait by spinning slow each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The tutorial's workbook and the real tokenizer are not ours to ship: they are found by checksum.
WORKBOOK = "58d1e6b293790d043cb34f37014f5219ea1dcc1102acf00b65e4223f0a36b8f5"


TOKENIZER = "f868398fc4e05ee1e8aeba95ddf18ddcc45b8bce55d5093bead5bbf80429b48b"


def _find(checksum):
    folders = [ROOT / "data", *ROOT.parent.glob("*/data")]
    if os.environ.get("REAL_DATA"):
        folders.insert(0, Path(os.environ["REAL_DATA"]))
    for place in folders:
        for path in place.glob("*"):
            if path.suffix in (".xlsx", ".model") and hashlib.sha256(path.read_bytes()).hexdigest() == checksum:
                return path
    return None


def _real(checksum, what):
    path = _find(checksum)
    if path is None:
        pytest.skip(f"{what} is not here; put it into a folder and name that with REAL_DATA=…")
    return path


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """In several processes (`-n 2 --dist loadgroup`) what shares a costly fixture stays in one of them."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        uses_demo = "demo" in item.fixturenames
        item.add_marker(pytest.mark.xdist_group("demo" if uses_demo else file))
        if uses_demo:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def cards_are_asked_for_anew():
    """Each test has its own nvidia-smi, often at the place of another's."""
    host._gpus.cache_clear()


@pytest.fixture(scope="session")
def real_workbook():
    return _real(WORKBOOK, "the tutorial's workbook")


@pytest.fixture(scope="session")
def real_tokenizer():
    return _real(TOKENIZER, "the InternLM2 tokenizer.model")


@pytest.fixture
def workbook(tmp_path):
    """Function that writes a workbook: sheet name → rows, the first being the header."""

    def make(name="mine.xlsx", **sheets):
        book = openpyxl.Workbook()
        book.remove(book.active)
        for title, rows in sheets.items():
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
        path = tmp_path / name
        book.save(str(path))
        return path

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo with the tiny model, run once: (its finished process, its run folder)."""
    output = tmp_path_factory.mktemp("tiny")
    done = recipe("demo", "tiny", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, output / "tiny"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The files of a tiny InternLM2: path → bytes."""
    root = tmp_path_factory.mktemp("tiny")
    place = download.ensure(Run("tiny", settings.load("tiny")[1], root, root))
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """ModelScope writes an index of its own code at the first import: once is enough."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def server(tiny, tls, caches, monkeypatch):
    """A hub with the tiny model, and the environment that leads both clients to it."""
    made = Hub(tiny, *tls)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", made.address)
    monkeypatch.setenv("HF_ENDPOINT", f"https://{made.address}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(caches / "modelscope"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.setattr(resumable_download, "TRIES", 3)
    yield made
    made.close()


@pytest.fixture
def asking(tmp_path):
    """Function that makes a run whose recipe asks the hub for its model."""

    def make(*overrides):
        words = [HUB_ID, 'model.source="modelscope"', *overrides]
        return Run("coach", settings.load("coach", words)[1], tmp_path, tmp_path / "output")

    return make


@pytest.fixture
def run_of_demo(tiny, tmp_path):
    place = tmp_path / "base"
    place.mkdir()
    for name, body in tiny.items():
        (place / name).write_bytes(body)
    return place
