"""The base model from a hub that behaves badly, and kept as it was fetched."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from recipe.base_model import download, folder, hub_clients, hub_files, tokenizer
from recipe.base_model.record import RECORD
from recipe.core import hashing, resumable_download
from recipe.core.errors import HostLacks, InputWrong
from recipe.stages import model
from recipe.stages.plan import inputs
from support.command import ROOT, recipe, refused
from support.hub_checks import AT_HUGGING_FACE, BOTH, heavy, is_whole, record
from support.hub_checks import HUB_ID as ID

NEWER = b"from transformers.cache_utils import Cache, DynamicCache, StaticCache\n"


def other_family(files, **changes):
    """The config of a model whose own code is run, with its modeling file."""
    config = json.loads(files["config.json"])
    config.update(model_type="internlm", architectures=["InternLMForCausalLM"], **changes)
    return {"config.json": json.dumps(config).encode(), "modeling_internlm2.py": NEWER + files["modeling_internlm2.py"]}


# Fetched


@BOTH
def test_a_model_is_fetched_whole_and_pinned(server, asking, tiny, tmp_path, monkeypatch, where):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.push({"README.md": b"later", "folder/more.txt": b"below"}, "master", "main")
    asked = asking(*where)
    place = download.ensure(asked)
    assert place == tmp_path / "models" / "org" / "tiny"
    assert is_whole(place, {**tiny, "README.md": b"later"})
    assert (place / "folder/more.txt").read_bytes() == b"below"
    made = record(place)
    assert made["commit"] == server.commit(1)
    assert (made["source"], made["revision"]) == (("huggingface", "main") if where else ("modelscope", "master"))
    assert {name: file["sha256"] for name, file in made["files"].items() if "/" not in name} == folder.fingerprint(
        place
    )
    assert not (tmp_path / "models" / ".download" / made["source"] / "org" / "tiny").exists()
    assert not (tmp_path / "home").exists()  # neither client left anything there
    for path, headers in server.asked:  # the token goes to the hub, not to where its large files lie
        assert ("Authorization" in headers or "authorization" in headers) == (bool(where) and "/cdn/" not in path)
    # From now on the hub is not asked: what was pinned stays.
    server.push({"README.md": b"newer still"}, "master", "main")
    server.asked.clear()
    assert download.ensure(asked) == place
    assert model.make(asked, tmp_path)["commit"] == server.commit(1)
    assert server.asked == []


@BOTH
def test_a_cut_transfer_goes_on_where_it_stopped(server, asking, tiny, where):
    server.cut = 500_000
    place = download.ensure(asking(*where))
    assert is_whole(place, tiny)
    resumed = [headers for _, headers in server.asked if "Range" in headers]
    again = sum(server.sent.values()) - sum(map(len, tiny.values()))
    assert len(resumed) >= 8
    assert again <= len(resumed) * resumable_download.BLOCK


def test_modelscopes_own_downloader_loses_what_was_cut(server, tmp_path, monkeypatch):
    """Why the bytes are not left to it; with another version this may change."""
    from modelscope.hub import api, file_download
    from modelscope.hub.snapshot_download import snapshot_download

    monkeypatch.setattr(api.ModelScopeConfig, "path_credential", str(tmp_path / "login"))
    monkeypatch.setattr(file_download, "API_FILE_DOWNLOAD_CHUNK_SIZE", 1 << 16)  # 16 MB: our files are smaller
    server.cut, server.cuts = 500_000, 1
    with pytest.raises(file_download.FileDownloadError, match="incomplete"):
        snapshot_download("org/tiny", revision="master", cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_server_without_ranges_starts_a_cut_file_again(server, asking, tiny):
    server.cut, server.cuts, server.ranges = 500_000, 2, False
    assert is_whole(download.ensure(asking()), tiny)
    assert sum(server.sent.values()) == sum(map(len, tiny.values())) + 2 * server.cut


def test_a_server_that_always_cuts_and_knows_no_ranges_is_given_up(server, asking, tmp_path):
    server.cut, server.ranges = 500_000, False
    with pytest.raises(HostLacks, match=r"could not be fetched from ModelScope: .*Type the same command again"):
        download.ensure(asking())
    assert not (tmp_path / "models" / "org").exists()


def test_a_throttled_transfer_is_taken_up_again(server, asking, tiny, monkeypatch):
    monkeypatch.setattr(resumable_download, "SILENCE", 0.5)
    monkeypatch.setattr(resumable_download, "TRIES", 6)  # a busy machine is silent too
    server.pause = 0.05
    slow = iter([1.0, 1.0])
    server.file, quick = lambda *given: (time.sleep(next(slow, 0)), quick(*given)), server.file
    assert is_whole(download.ensure(asking()), tiny)


def test_ctrl_c_keeps_what_has_arrived(server, asking, tiny, tmp_path):
    server.pause = 0.2
    words = [sys.executable, "-m", "recipe", "model", "coach", ID]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECIPE_CACHE": str(tmp_path / "cache")}
    child = subprocess.Popen(words, cwd=str(tmp_path), env=environment, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "models/.download/modelscope/org/tiny/.recipe"
    deadline = time.time() + 60
    while time.time() < deadline and sum(p.stat().st_size for p in parts.glob("*.safetensors.part")) < 500_000:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=15)[1]
    assert child.returncode == 130, said
    assert "what has arrived is kept" in said
    assert not (tmp_path / "models" / "org").exists()
    here = sum(p.stat().st_size for p in parts.glob("*.safetensors.part"))
    assert here >= 500_000
    server.pause = 0
    time.sleep(0.5)
    server.sent.clear()
    said = model.summary(model.make(asking(), tmp_path))
    assert is_whole(tmp_path / "models" / "org" / "tiny", tiny)
    assert sum(server.sent.values()) == sum(len(tiny[name]) for name in heavy(tiny)) - here
    assert f"master is commit {server.commit(0)[:12]} at ModelScope" in said
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"models", "output"}


@BOTH
def test_a_corrupted_file_is_deleted_and_named_and_only_it_is_fetched_again(server, asking, tiny, where):
    shard = sorted(heavy(tiny))[1]
    for name in (shard, "config.json"):  # with sha256, and at Hugging Face with git's own checksum
        server.corrupt = {name}
        with pytest.raises(HostLacks, match=f"{name} of org/tiny arrived damaged.*deleted"):
            download.ensure(asking(*where))
        time.sleep(0.3)  # transfers beside it end
        server.corrupt = set()
        server.sent.clear()
        if name == shard:
            place = download.ensure(asking(*where))
            assert server.sent[shard] == len(tiny[shard])
            assert not set(server.sent) - heavy(tiny)
            assert is_whole(place, tiny)
            shutil.rmtree(str(place))


def test_safetensors_are_enough(server, asking, tiny):
    server.push({"pytorch_model-00001-of-00001.bin": b"x" * 1000, "pytorch_model.bin.index.json": b"{}"}, "master")
    assert is_whole(download.ensure(asking()), tiny)


# What the hub has


@BOTH
def test_an_unknown_revision_is_told_with_the_known_ones(server, asking, where):
    server.push({}, "v1.0.3")
    with pytest.raises(InputWrong, match=r"has no revision v9 at .*it has (master|main), v1\.0\.3.*model\.revision="):
        download.ensure(asking("model.revision=v9", *where))


@BOTH
def test_tags_and_commits_are_revisions(server, asking, where):
    server.push({"README.md": b"second"}, "v2")
    server.push({"README.md": b"third"}, "master", "main")
    place = download.ensure(asking("model.revision=v2", *where))
    assert (place / "README.md").read_bytes() == b"second"
    assert download.ensure(asking(f"model.revision={server.commit(1)}", *where)) == place  # the same, said otherwise
    shutil.rmtree(str(place))
    place = download.ensure(asking(f"model.revision={server.commit(1)}", *where))
    assert (place / "README.md").read_bytes() == b"second"
    assert record(place)["files"]["README.md"]["sha256"] == hashlib.sha256(b"second").hexdigest()


def test_another_revision_or_hub_than_what_is_here_is_told(server, asking, tmp_path):
    download.ensure(asking())
    for words, wanted in (
        (["model.revision=v1.0.0"], r"v1\.0\.0 from ModelScope"),
        ([AT_HUGGING_FACE], "main from Hugging Face"),
    ):
        for use in (download.ensure, tokenizer.tokenizer):
            with pytest.raises(InputWrong, match=f"holds revision master .*the recipe asks for {wanted}.*model.path="):
                use(asking(*words))
    # Renamed and named, it is taken, and still compared with its record.
    (tmp_path / "models/org/tiny").rename(tmp_path / "models/mine")
    assert download.ensure(asking("model.path=models/mine", "model.revision=v1.0.0")).name == "mine"
    (tmp_path / "models/mine/README.md").write_text("not in the record")
    (tmp_path / "models/mine/generation_config.json").write_text("{}")
    with pytest.raises(HostLacks, match=r"generation_config\.json in models/mine: changed since the download"):
        download.ensure(asking("model.path=models/mine"))


def test_tokenizer_first_and_weights_later_come_from_one_commit(server, asking, tiny, tmp_path):
    done = recipe("model", "coach", ID, "--tokenizer", cwd=tmp_path, RECIPE_CACHE=str(tmp_path / "cache"))
    assert done.stdout.split() == ["tokenizer", "models/.download/modelscope/org/tiny/tokenizer.model"], done.stderr
    assert set(server.sent) == {"tokenizer.model", "config.json"}
    server.asked.clear()
    ids = tokenizer.tokenizer(asking()).convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids == [2047, 2046]
    planned = hashing.key_of(inputs(asking()))
    assert server.asked == []
    server.push({"generation_config.json": b"{}"}, "master")
    place = download.ensure(asking())
    assert record(place)["commit"] == server.commit(0)
    assert is_whole(place, tiny)
    assert server.sent["tokenizer.model"] == len(tiny["tokenizer.model"])
    assert hashing.key_of(inputs(asking())) == planned  # the plan made before the download still holds


@BOTH
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, HostLacks, "private, gated or misspelt"),
        (403, HostLacks, "private, gated or misspelt"),
        (404, InputWrong, "has no org/tiny"),
        (500, HostLacks, "answers HTTP"),
    ],
)
def test_refusals_of_a_hub_are_told(server, asking, where, status, kind, words):
    server.status = {"/": status}
    with pytest.raises(kind, match=words) as told:
        download.ensure(asking(*where))
    assert "\n" not in str(told.value)


def test_an_error_in_the_middle_is_no_part_of_a_file(server, asking, tiny):
    server.status = {"model-00002": 503}
    with pytest.raises(HostLacks, match=r"answers HTTP 503.*what has arrived is kept.*MODELSCOPE_DOMAIN"):
        download.ensure(asking())
    time.sleep(0.3)
    server.status = {}
    assert is_whole(download.ensure(asking()), tiny)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_ENDPOINT": "https://hub.invalid"}, "cannot be resolved: no network here, or no DNS"),
        ({"HF_ENDPOINT": "https://localhost:9"}, r"could not be fetched .*refused.*HF_ENDPOINT="),
        ({"REQUESTS_CA_BUNDLE": ""}, r"certificate is not accepted.*REQUESTS_CA_BUNDLE="),
        ({"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, r"The proxy \(HTTPS_PROXY\) blocks access"),
    ],
    ids=["dns", "nobody", "tls", "proxy"],
)
def test_a_broken_way_to_the_hub_is_told(server, asking, monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HostLacks, match=words) as told:
        download.ensure(asking(AT_HUGGING_FACE))
    assert "\n" not in str(told.value)


def test_no_network_with_modelscope(server, asking, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "hub.invalid")
    with pytest.raises(HostLacks, match=r"ModelScope's name cannot be resolved.*MODELSCOPE_DOMAIN=host.*model\.path="):
        download.ensure(asking())


def test_a_disk_too_small_is_told_before_anything_is_fetched(server, asking, monkeypatch, tiny):
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    needed = sum(map(len, tiny.values())) / 1e9
    with pytest.raises(HostLacks, match=f"needs {needed:.1f} GB more in models; 0.0 GB are free"):
        download.ensure(asking())
    assert not server.sent


def test_a_disk_that_fills_up_is_told(server, asking, monkeypatch):
    partial_file = hub_files.partial_file
    full = Path("/dev/full")
    monkeypatch.setattr(
        hub_files,
        "partial_file",
        lambda place, name: full if name in heavy([name]) else partial_file(place, name),
    )
    with pytest.raises(HostLacks, match=r"The disk is full while org/tiny is being fetched.*what has arrived is kept"):
        download.ensure(asking())


# Kept


def test_what_was_fetched_is_checked_ever_after(server, asking, tiny, tmp_path):
    place = download.ensure(asking())
    shard = place / sorted(heavy(tiny))[0]
    stored = record(place)["files"][shard.name]
    os.utime(str(shard))  # touched: read again, found equal, the new time noted
    before = folder.fingerprint(place)
    download.ensure(asking())
    assert record(place)["files"][shard.name]["time"] == shard.stat().st_mtime_ns != stored["time"]
    assert folder.fingerprint(place) == before
    # A change that leaves size and time is found by --verify alone.
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(str(shard), ns=(stored["time"], record(place)["files"][shard.name]["time"]))
    download.ensure(asking())
    done = recipe("model", "coach", ID, "--verify", cwd=tmp_path, RECIPE_CACHE=str(tmp_path / "cache"))
    refused(done, 3, shard.name, "changed since the download", "Remove it and type just model")
    # Removed, it alone is fetched again.
    shard.unlink()
    server.sent.clear()
    assert is_whole(download.ensure(asking()), tiny)
    assert server.sent == {shard.name: len(data)}
    verifying = asking()
    verifying.verify = True
    assert model.make(verifying, tmp_path)["verified"]
    assert server.sent == {shard.name: len(data)}


def test_read_only_models_are_checked_without_writing_and_never_fetched(server, asking, tmp_path, tiny):
    place = download.ensure(asking())
    os.utime(str(place / "config.json"))
    before = (place / RECORD).read_bytes()
    everything = [tmp_path, *tmp_path.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    above = {path: path.stat().st_mode for path in tmp_path.parents if not path.stat().st_mode & 0o001}
    for path in above:
        path.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:  # who may write anywhere
            os.seteuid(65534)
        assert download.ensure(asking()) == place
        with pytest.raises(HostLacks, match=r"The base model is not in models, and nothing can be written.*just model"):
            download.ensure(asking("model.id=org/other"))
        with pytest.raises(HostLacks, match=r"The base model is not in models, and nothing can be written.*just model"):
            tokenizer.tokenizer(asking("model.id=org/other"))
    finally:
        if root:
            os.seteuid(0)
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
        for path, mode in above.items():
            path.chmod(mode)
    assert (place / RECORD).read_bytes() == before
    assert not server.paths("other")


# Fit


@BOTH
def test_code_newer_than_this_stack_is_refused_before_the_weights(server, asking, tiny, where):
    """Of every family but InternLM2, whose own code is not run."""
    old = {**tiny, **other_family(tiny), "modeling_internlm2.py": tiny["modeling_internlm2.py"]}
    server.history[0], server.names["v1.0.0"] = old, 0
    newer, date = other_family(tiny, transformers_version="4.41.0"), datetime(2024, 7, 1, tzinfo=timezone.utc)
    server.push(newer, "master", "main", "v2.0.0", date=date)
    older = server.commit(0) if where else "v1.0.0"
    with pytest.raises(InputWrong) as told:
        download.ensure(asking(*where))
    for words in (
        "modeling_internlm2.py needs StaticCache of transformers.cache_utils", "This stack has transformers 4.36.2",
        "saved with 4.41.0", f"from before 2024-03-18, this stack's date, is model.revision={older}",
    ):  # fmt: skip
        assert words in str(told.value)
    assert not heavy(server.sent)
    assert is_whole(download.ensure(asking(f"model.revision={older}", *where)), old)


def test_files_of_a_refused_revision_do_not_get_into_another(server, asking, tiny):
    server.push({}, "v1.0.0")
    server.push({**other_family(tiny), "newer.py": b"pass"}, "master", date=datetime(2024, 7, 1))
    with pytest.raises(InputWrong, match="StaticCache"):
        download.ensure(asking())
    assert is_whole(download.ensure(asking("model.revision=v1.0.0")), tiny)


def test_where_the_hub_has_no_old_revision_by_name_the_message_says_where_to_look(server, asking, tiny):
    server.push(other_family(tiny), "master")
    with pytest.raises(InputWrong, match=r"Name a revision from before 2024-03-18, .* lists master; .*huggingface"):
        download.ensure(asking())
    assert f'"{hub_clients.STACK_DAY:%Y-%m-%d}T00:00:00Z"' in (ROOT / "docker/locks/lock.py").read_text()
