"""A hub that answers otherwise than its client expects: asked by plain addresses, and told which way was used."""

import json
import shutil
import struct

import pytest

from recipe.base_model import download, hub_clients
from recipe.core.errors import HostLacks, InputWrong
from recipe.stages import model
from support.hub_checks import AT_HUGGING_FACE, BOTH, heavy, is_whole, record

LIST = "/repo/files"


def entries(hub, **names):
    """What the hub lists, its keys renamed or, with None, left out; other keys as they are, or in lower case."""
    lower = names.pop("lower", False)
    listed = [hub.listed(0, path) for path in hub.history[0]]
    kept = [{names.get(key, key): value for key, value in one.items() if names.get(key, key)} for one in listed]
    return [{key.lower() if lower else key: value for key, value in one.items()} for one in kept]


@pytest.mark.parametrize(
    "answer",
    [
        lambda hub: {"Code": 200, "Data": entries(hub), "Success": True},
        lambda hub: {"code": 200, "data": {"files": entries(hub, lower=True)}, "success": True},
        lambda hub: {"Code": 200, "Data": {"Files": entries(hub, Type=None, CommittedDate=None, Name=None)}},
        lambda hub: {"Data": {"Files": entries(hub)}},
    ],
    ids=["a list", "lower case", "fewer keys", "no code"],
)
def test_modelscopes_list_is_read_in_every_shape(server, asking, tiny, tmp_path, answer):
    server.body = {LIST: answer}
    place = download.ensure(asking())
    assert is_whole(place, tiny)
    made = record(place)
    assert made["listed_by"].startswith("its list of files, as the client failed (")
    said = model.summary(model.make(asking(), tmp_path))
    assert "the hub was asked by its list of files, as the client failed" in said


@pytest.mark.parametrize(
    "behave",
    [
        lambda hub: hub.status.update({LIST: 404}),
        lambda hub: hub.status.update({"/api/": 404}),
        lambda hub: hub.status.update({"/api/": 403}),
        lambda hub: hub.body.update({LIST: {"Code": 200, "Data": {"Tree": []}}}),
        lambda hub: hub.body.update({LIST: [1, 2]}),
        lambda hub: hub.page.update({"/api/": "<html>log in</html>"}),
        lambda hub: hub.body.update({"/api/": {"Code": 10010, "Message": "upgrade the client"}}),
    ],
    ids=["404 on the list", "404 on the api", "403 on the api", "other json", "no object", "a page", "an error in 200"],
)
@pytest.mark.parametrize("shards", [True, False], ids=["indexed", "single"])
def test_without_a_list_modelscope_is_asked_for_each_file(server, asking, tiny, behave, shards):
    files = {name: body for name, body in tiny.items() if shards or name not in heavy(tiny)}
    if not shards:
        del files["model.safetensors.index.json"]
        files["model.safetensors"] = joined(tiny)
    server.history[0] = files
    behave(server)
    place = download.ensure(asking())
    assert is_whole(place, files)
    made = record(place)
    assert (made["commit"], made["revision"]) == ("", "master")
    assert made["listed_by"].startswith("the addresses of its files, as the client failed (")
    assert download.ensure(asking()) == place


def joined(files):
    """The shards of a model as one safetensors file."""
    from safetensors.numpy import load, save

    tensors = {}
    for name in heavy(files):
        tensors.update(load(files[name]))
    return save(tensors, {"format": "pt"})


@pytest.mark.parametrize("status", [401, 404, 500])
def test_hugging_face_is_asked_by_addresses_where_its_api_fails(server, asking, tiny, status):
    server.status = {"/api/": status}
    place = download.ensure(asking(AT_HUGGING_FACE))
    assert is_whole(place, tiny)
    made = record(place)
    assert made["commit"] == server.commit(0)  # in the answers' headers
    assert made["listed_by"].startswith("the addresses of its files")
    assert {name: bool(file["sha256"]) for name, file in made["files"].items()} == dict.fromkeys(tiny, True)
    # The checksums that the headers state are compared.
    shutil.rmtree(str(place))
    server.corrupt = {sorted(heavy(tiny))[0]}
    with pytest.raises(HostLacks, match="arrived damaged"):
        download.ensure(asking(AT_HUGGING_FACE))


def test_a_client_that_cannot_even_start_is_done_without(server, asking, tiny, monkeypatch):
    monkeypatch.setattr(hub_clients, "modelscope_api", lambda: 1 / 0)
    assert is_whole(download.ensure(asking()), tiny)


def test_one_file_that_the_api_does_not_give_comes_from_its_plain_address(server, asking, tiny):
    server.status = {"FilePath=model-00001": 404, "FilePath=tokenizer.model": 404}
    assert is_whole(download.ensure(asking()), tiny)
    assert server.paths("/models/org/tiny/resolve/")


@BOTH
def test_what_is_nowhere_is_told_as_before(server, asking, where):
    server.status = {"/": 404}
    with pytest.raises(InputWrong, match="has no org/tiny"):
        download.ensure(asking(*where))


@BOTH
def test_pages_in_place_of_answers_are_told(server, asking, where):
    server.page = {"/": "<html>Log in to this hotel's network</html>"}
    with pytest.raises(HostLacks, match=r"localhost:\d+ does not respond like .*\(a login page") as told:
        download.ensure(asking(*where))
    assert "\n" not in str(told.value)


def test_a_mirror_that_only_redirects_is_told(server, asking):
    server.redirect = "https://localhost:9"
    with pytest.raises(HostLacks, match=r"localhost:\d+ redirects to localhost:9, .*mirror that hosts the files"):
        download.ensure(asking(AT_HUGGING_FACE))


def test_a_mirror_that_redirects_to_a_hub_within_reach_serves(server, asking, tiny, tls):
    from support.hub_server import Hub

    mirror = Hub({}, *tls)
    mirror.redirect = f"https://{server.address}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_ENDPOINT", f"https://{mirror.address}")
        assert is_whole(download.ensure(asking(AT_HUGGING_FACE)), tiny)
    mirror.close()


# The weights, before they are fetched


def header(body, change):
    """A safetensors file with its header changed, of the same length."""
    length = struct.unpack("<Q", body[:8])[0]
    named = json.loads(body[8 : 8 + length])
    change(named)
    text = json.dumps(named, separators=(",", ":")).encode()
    return struct.pack("<Q", max(length, len(text))) + text.ljust(length) + body[8 + length :]


@BOTH
def test_weights_of_other_shapes_are_refused_before_they_are_fetched(server, asking, tiny, where):
    config = json.loads(tiny["config.json"])
    server.push({"config.json": json.dumps({**config, "intermediate_size": 1024}).encode()}, "master", "main")
    with pytest.raises(InputWrong, match=r"w1\.weight is \[704, 256\], config\.json says \[1024, 256\].*not fetched"):
        download.ensure(asking(*where))
    assert not heavy(server.sent)


@BOTH
def test_weights_of_other_names_are_refused_by_the_index_alone(server, asking, tiny, where):
    name = "model.safetensors.index.json"
    index = json.loads(tiny[name])
    weight_map = {key.replace("feed_forward", "mlp"): value for key, value in index["weight_map"].items()}
    body = json.dumps({**index, "weight_map": weight_map}).encode()
    bins = {path.replace(".safetensors", ".bin"): text for path, text in tiny.items() if path in heavy(tiny)}
    light = {path: text for path, text in tiny.items() if path not in heavy(tiny) and path != name}
    server.history[0] = {**light, **bins, "pytorch_model.bin.index.json": body}
    with pytest.raises(InputWrong, match=r"missing model\.layers\.0\.feed_forward\.w1.*unknown model\.layers\.0\.mlp"):
        download.ensure(asking(*where))
    assert not any(path.endswith(".bin") for path in server.sent)


def test_weights_of_another_size_are_refused_by_the_index_alone(server, asking, tiny):
    index = json.loads(tiny["model.safetensors.index.json"])
    index["metadata"]["total_size"] += 2
    bins = {path.replace(".safetensors", ".bin"): text for path, text in tiny.items() if path in heavy(tiny)}
    light = {path: text for path, text in tiny.items() if path not in heavy(tiny) and "index" not in path}
    server.history[0] = {**light, **bins, "pytorch_model.bin.index.json": json.dumps(index).encode()}
    with pytest.raises(InputWrong, match=r"the weights are [\d,]+ bytes, and [\d,]+ numbers are expected"):
        download.ensure(asking())
    assert not any(path.endswith(".bin") for path in server.sent)


def test_a_header_longer_than_what_is_first_asked_for_is_read_whole(server, asking, tiny):
    shard = sorted(heavy(tiny))[0]
    longer = header(tiny[shard], lambda named: named.update(__metadata__={"format": "pt", "more": "x" * 70_000}))
    server.push({shard: longer}, "master")
    assert is_whole(download.ensure(asking()), {**tiny, shard: longer})


def test_what_is_no_safetensors_file_is_told_before_it_is_fetched(server, asking, tiny):
    shard = sorted(heavy(tiny))[0]
    server.push({shard: b"version https://git-lfs.github.com/spec/v1\n" * 99}, "master")
    with pytest.raises(InputWrong, match=f"{shard} of org/tiny is not a safetensors file"):
        download.ensure(asking())
