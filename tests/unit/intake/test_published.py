"""The workbook that a recipe names by address and checksum: fetched where it is missing, and nothing else."""

import hashlib
import os
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from recipe.core import resumable_download, settings
from recipe.core.errors import HostLacks, InputWrong, NotFetched
from recipe.core.run import Run
from recipe.intake import published
from recipe.stages import data
from support.command import ROOT, recipe, refused
from support.hub_server import Hub

NAME = "data/咨询 1.xlsx"
BOOK = (ROOT / "data" / "workplace.xlsx").read_bytes()
PATH = f"/owner/repository/commit/{NAME}"


@pytest.fixture
def site(tls, monkeypatch, tmp_path):
    """A server in the place of raw.githubusercontent.com, with the published workbook."""
    made = Hub({}, *tls)
    made.raw = {PATH: BOOK}
    monkeypatch.setenv("GITHUB_RAW", f"https://{made.address}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    monkeypatch.setattr(resumable_download, "TRIES", 3)
    monkeypatch.chdir(tmp_path)
    yield made
    made.close()


@pytest.fixture
def run(tmp_path):
    """Function: the run of a recipe that names the published workbook, with changes."""

    def make(**changes):
        named = {"url": f"{published.RAW}{quote(PATH)}", "sha256": hashlib.sha256(BOOK).hexdigest(), **changes}
        recipe_settings = settings.load("tiny")[1]
        for key, value in {"files": [NAME], **named}.items():
            recipe_settings = settings.replace(recipe_settings, f"data.{key}", value)
        made = Run("tiny", recipe_settings, tmp_path, tmp_path / "output")
        made.folder.mkdir(parents=True, exist_ok=True)
        return made

    return make


def test_a_checksum_in_capitals_is_the_same(site, run, tmp_path):
    data.inputs(run(sha256=hashlib.sha256(BOOK).hexdigest().upper()))
    assert (tmp_path / NAME).read_bytes() == BOOK


def test_a_missing_one_is_fetched_checked_and_read(site, run, tmp_path, capsys):
    inputs = data.inputs(run())
    assert inputs["files"] == [NAME]
    assert (tmp_path / NAME).read_bytes() == BOOK
    assert [path.name for path in (tmp_path / "data").iterdir()] == [Path(NAME).name]
    assert f"{NAME} is missing: fetching it from {site.address}" in capsys.readouterr().err
    site.asked.clear()
    assert data.inputs(run()) == inputs
    assert site.asked == []


@pytest.mark.parametrize("states_size", [True, False])
def test_a_cut_transfer_goes_on_also_in_the_next_command(site, run, tmp_path, monkeypatch, states_size):
    monkeypatch.setattr(resumable_download, "BLOCK", 500)
    site.states_size = states_size
    part = tmp_path / "data" / f".{Path(NAME).name}.part"
    part.parent.mkdir()
    part.write_bytes(BOOK[:1000])  # of a command that was stopped
    if states_size:
        site.cut, site.cuts = 3000, 2
    published.ensure(run())
    assert (tmp_path / NAME).read_bytes() == BOOK
    assert sum(site.sent.values()) <= len(BOOK) - 1000 + 2 * resumable_download.BLOCK


def test_a_partial_file_longer_than_the_published_one_starts_again(site, run, tmp_path):
    part = tmp_path / "data" / f".{Path(NAME).name}.part"
    part.parent.mkdir()
    part.write_bytes(BOOK + b"more")
    answer = site.file
    site.file = lambda to, name, body: site.send(to, {}, 416) if to.headers.get("Range") else answer(to, name, body)
    published.ensure(run())
    assert (tmp_path / NAME).read_bytes() == BOOK


def test_another_content_never_gets_the_name(site, run, tmp_path):
    site.raw = {PATH: BOOK + b"more"}
    with pytest.raises(HostLacks, match=r"not what the recipe names.*deleted.*GITHUB_RAW=.*\ncurl -fL -o 'data/咨询"):
        published.ensure(run())
    assert list((tmp_path / "data").glob("*.xlsx")) == []
    assert list((tmp_path / "data").glob(".*.part")) == []


def test_a_page_instead_of_the_file_is_refused(site, run, tmp_path):
    site.raw, site.page = {}, {"/owner/": "<html>Log in</html>"}
    with pytest.raises(HostLacks, match="sent text/html instead of"):
        published.ensure(run())
    assert not (tmp_path / NAME).exists()


def test_a_file_of_the_users_own_is_never_fetched_nor_replaced(site, run, tmp_path):
    """Missing under another name, no address is offered for it; there with another content, it stays as it is."""
    for changes in ({"files": ["data/mine.xlsx"]}, {"files": ["data/mine.xlsx"], "sha256": ""}, {"sha256": ""}):
        with pytest.raises(InputWrong, match=r"There is no workbook data/.*name yours") as told:
            data.inputs(run(**changes))
        assert "http" not in str(told.value)
    own = tmp_path / NAME
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(InputWrong, match=r"not the workbook that .*Rename it and type the same command again, which"):
        data.inputs(run())
    assert own.read_bytes() == b"mine"
    own.unlink()
    own.symlink_to(tmp_path / "gone.xlsx")
    with pytest.raises(InputWrong, match="There is no workbook"):
        data.inputs(run())
    assert site.asked == []


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_a_file_that_comes_meanwhile_stays(site, run, tmp_path, monkeypatch, links):
    complete = resumable_download.complete

    def slow(*given):
        complete(*given)
        (tmp_path / NAME).write_bytes(b"mine")

    monkeypatch.setattr(resumable_download, "complete", slow)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    published.ensure(run())
    assert (tmp_path / NAME).read_bytes() == b"mine"
    (tmp_path / NAME).unlink()
    monkeypatch.setattr(resumable_download, "complete", complete)
    published.ensure(run())
    assert (tmp_path / NAME).read_bytes() == BOOK


def test_two_commands_fetch_it_once(site, run, tmp_path):
    site.pause = 0.2
    threads = [threading.Thread(target=published.ensure, args=(run(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / NAME).read_bytes() == BOOK
    assert sum(site.sent.values()) == len(BOOK)


def test_a_password_of_the_mirror_is_not_shown(site, run, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_RAW", f"https://me:secret@{site.address}")
    for changes in ({"sha256": "0" * 64}, {"url": f"{published.RAW}/gone/{quote(Path(NAME).name)}"}):
        with pytest.raises(HostLacks, match=site.address) as caught:
            published.ensure(run(**changes))
        assert "secret" not in str(caught.value) + capsys.readouterr().err


def test_without_a_network_the_command_to_type_is_told(site, run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_RAW", "hub.invalid/")
    command = f"curl -fL -o '{NAME}' {published.RAW}{quote(PATH)}"
    with pytest.raises(HostLacks, match=r"could not be fetched from hub\.invalid: its name cannot be resolved") as told:
        published.ensure(run())
    assert command in str(told.value)
    assert list((tmp_path / "data").iterdir()) == []
    assert "GITHUB_RAW=" in str(told.value)
    monkeypatch.setenv("RECIPE_FETCH", "no")  # a container without a network: docker/runtime/run starts one that has
    with pytest.raises(NotFetched) as told:
        data.inputs(run())
    assert told.value.code == 78
    monkeypatch.setenv("RECIPE_FETCH", "workbook")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    elsewhere = run(url=f"https://own.example/{quote(NAME)}")  # an address that no mirror stands for
    with pytest.raises(HostLacks, match=r"proxy .* blocks access to own\.example"):
        published.ensure(elsewhere)


def test_a_folder_that_cannot_be_written_is_told(site, run):
    place = f"/sys/{Path(NAME).name}"
    with pytest.raises(HostLacks, match=r"/sys/.*Make it writable"):
        published.ensure(run(files=[place]))


def test_the_shipped_recipes_workbook_by_the_command_line(site, tmp_path, real_workbook):
    """As docker/runtime/run starts it to fetch the file alone, and as a user does."""
    for name in ("tutorial", "coach"):
        shipped = settings.load(name)[1].data
        assert published.is_published(shipped, shipped.files[0])
    where = published.address(shipped)[len(f"https://{site.address}") :]
    site.raw = {published.unquote(where): real_workbook.read_bytes()}
    done = recipe("data", "coach", "--output", tmp_path, cwd=tmp_path, RECIPE_FETCH="no")
    refused(done, 78, "not here yet")
    done = recipe("train", "coach", "--output", tmp_path, cwd=tmp_path, RECIPE_FETCH="workbook")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / shipped.files[0]).read_bytes() == real_workbook.read_bytes()
    done = recipe("data", "coach", "--output", tmp_path, cwd=tmp_path, RECIPE_FETCH="no")
    assert "246 rows" in done.stdout or "234 rows" in done.stdout, done.stderr
