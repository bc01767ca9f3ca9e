"""model.source = "auto": ModelScope, then Hugging Face, each at its own revision; or the folder that is here."""

import os
import shutil

import pytest

from recipe.base_model import download, folder, record, tokenizer
from recipe.base_model.hub_files import partial_file
from recipe.core import overrides, settings, translation
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.reporting import provenance
from recipe.reporting.run_view import base_model_name
from recipe.stages import model
from support.command import recipe, refused
from support.hub_checks import heavy, is_whole

AUTO = 'model.source="auto"'


@pytest.fixture
def auto(asking, server, tmp_path):
    """Function: a run with model.source = "auto" and these ids; the hub's one repository is org/tiny."""

    def make(*words):
        found = settings.load("coach", ["model.id=org/tiny", AUTO, "model.huggingface.revision=main", *words])[1]
        return Run("coach", found, tmp_path, tmp_path / "output")

    return make


def no_modelscope(monkeypatch):
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "hub.invalid")


def test_modelscope_comes_first(auto, tiny, server, tmp_path, capsys):
    run = auto()
    assert is_whole(download.ensure(run), tiny)
    assert record.read_record(folder.folder(run))["source"] == "modelscope"
    assert not server.paths("/api/models/org/tiny/revision")
    assert "Taking" not in capsys.readouterr().err
    assert "commit" in model.summary(model.make(run, tmp_path))


def test_hugging_face_follows_at_its_own_id_and_revision(auto, tiny, server, tmp_path, monkeypatch, capsys):
    no_modelscope(monkeypatch)
    server.push({"README.md": b"---\nlicense: mit\n---\n"}, "master", "main")
    run = auto("model.id=org/first", "model.huggingface.id=org/tiny", f"model.huggingface.revision={server.commit(0)}")
    place = download.ensure(run)
    assert place == tmp_path / "models/org/tiny"
    assert is_whole(place, tiny)
    told = capsys.readouterr().err
    assert "ModelScope's name cannot be resolved" in told
    assert f"Taking Hugging Face: org/tiny at {server.commit(0)[:12]}" in told
    figures = model.make(run, tmp_path)
    assert (figures["source"], figures["id"], figures["commit"]) == ("huggingface", "org/tiny", server.commit(0))
    assert "cannot be resolved" in model.summary(figures)
    run.manifest = {"stages": {"model": {"figures": figures, "outputs": {}, "finished": "2026-01-01"}}}
    assert base_model_name(run) == "org/tiny"
    view = type("View", (), {"run": run, "plan": {}, "figures": lambda self, name: run.figures(name)})()
    rows = dict(provenance.provenance(view))
    assert "cannot be resolved" in rows["not from the first hub"]
    # From now on that folder is used, also when ModelScope answers again.
    monkeypatch.setenv("MODELSCOPE_DOMAIN", server.address)
    server.asked.clear()
    assert download.ensure(run) == place
    assert tokenizer.tokenizer(run).convert_tokens_to_ids("<|im_end|>") == 2046
    assert server.asked == []


def test_why_another_hub_was_taken_is_recorded_in_english(auto, tiny, tmp_path, monkeypatch, capsys):
    no_modelscope(monkeypatch)
    with translation.use("zh"):
        run = auto()
        download.ensure(run)
        said = capsys.readouterr().err
        assert "解析不了 ModelScope 的域名：这里没有网络，或没有 DNS（" in said
        assert "。改用 Hugging Face：org/tiny，版本 main" in said
        why = record.read_record(folder.folder(run))["instead_of"]
        assert why.startswith("ModelScope's name cannot be resolved")
        assert translation.stored(why).startswith("解析不了")


def test_no_hub_is_told_in_chinese(auto, server):
    with translation.use("zh"), pytest.raises(InputWrong) as caught:
        download.ensure(auto("model.id=org/other"))
    first, modelscope, hugging_face = str(caught.value).splitlines()
    assert first == "没有哪个模型社区能提供这个配方的底座模型："
    assert modelscope.startswith("- ModelScope 上没有 org/other（版本 ")
    assert modelscope.endswith("。检查 model.id。")
    assert hugging_face.startswith("- Hugging Face 上没有 org/other（版本 main）：")


def test_a_begun_download_goes_on_at_its_hub(auto, tiny, server, tmp_path, monkeypatch):
    no_modelscope(monkeypatch)
    run = auto()
    tokenizer.download_for_plan(run)
    assert set(server.sent) == {"tokenizer.model", "config.json"}
    monkeypatch.setenv("MODELSCOPE_DOMAIN", server.address)
    shard = sorted(name for name in tiny if name.endswith(".safetensors"))[0]
    part = partial_file(record.staging_folder(run), shard)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(tiny[shard][:500_000])
    server.asked.clear()
    server.sent.clear()
    assert is_whole(download.ensure(run), tiny)
    assert record.read_record(folder.folder(run))["source"] == "huggingface"
    assert not server.paths("/api/v1/models")
    assert server.sent[shard] == len(tiny[shard]) - 500_000


def test_a_folder_of_either_hub_is_used(auto, tiny, server, tmp_path):
    there = tmp_path / "models" / "org" / "second"
    there.mkdir(parents=True)
    for name, body in tiny.items():
        (there / name).write_bytes(body)
    run = auto("model.id=org/other", "model.huggingface.id=org/second")
    assert download.ensure(run) == there
    assert server.asked == []
    shutil.rmtree(str(there))
    with pytest.raises(
        InputWrong, match=r"No hub has the base model.*\n- ModelScope has no org/other.*\n- Hugging Face"
    ):
        download.ensure(run)


def test_weights_that_the_other_hubs_download_holds_are_not_fetched_again(auto, tiny, server, tmp_path, monkeypatch):
    changed, same = (sorted(heavy(tiny))[number] for number in (0, -1))
    download.ensure(auto()).rename(tmp_path / "models/org/mine")  # another name of the model, as hubs have them
    weights = tmp_path / "models/org/mine" / changed
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")  # no longer what its record says
    server.sent.clear()
    no_modelscope(monkeypatch)
    place = download.ensure(auto())
    assert is_whole(place, tiny)
    assert heavy(server.sent) == {changed}
    assert (place / same).stat().st_ino == (tmp_path / "models/org/mine" / same).stat().st_ino
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    shutil.rmtree(str(place))
    assert is_whole(download.ensure(auto()), tiny)
    assert heavy(server.sent) == heavy(tiny)


def test_without_any_hub_both_reasons_are_told(auto, monkeypatch, tmp_path):
    no_modelscope(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "https://other.invalid")
    with pytest.raises(HostLacks) as told:
        download.ensure(auto())
    assert str(told.value).count("cannot be resolved") == 2
    assert "ModelScope" in str(told.value)
    assert "Hugging Face" in str(told.value)
    done = recipe("model", "coach", "model.id=org/tiny", cwd=tmp_path, RECIPE_CACHE=str(tmp_path / "cache"))
    refused(done, 3, "No hub has the base model", "HF_ENDPOINT=", "MODELSCOPE_DOMAIN=")
    assert "model.source=" not in done.stderr


def test_a_fixed_hub_names_the_other(asking, monkeypatch):
    """The tutorial's model is ModelScope's: another hub's commit may hold other weights, so it is the user's choice."""
    no_modelscope(monkeypatch)
    run = asking()
    tutorial = settings.load("tutorial")[1]
    assert tutorial.model.source == "modelscope"
    run.settings = run.settings.model_copy(update={"model": tutorial.model})
    with pytest.raises(HostLacks, match=r"or Hugging Face \(model\.source=huggingface\)"):
        download.ensure(run)


@pytest.mark.parametrize("source", ["auto", "modelscope", "huggingface"])
@pytest.mark.parametrize(
    "words", [[], ["model.revision=v9"], ["model.id=org/other"], ["model.id=org/other", "model.revision=v9"]]
)
def test_settings_written_down_are_read_back(tmp_path, source, words):
    """As the report writes them into a recipe file, and as overrides in a command to type."""
    typed = [f"model.source={source}", *words]
    found = settings.load("coach", typed)[1]
    (tmp_path / "again.toml").write_text(provenance.to_toml(found.model_dump()), encoding="utf-8")
    assert settings.load(str(tmp_path / "again.toml"))[1] == found
    shipped = settings.load("coach")[1]
    assert settings.load("coach", overrides.between(shipped, found))[1].model == found.model
    by_source = {model.source: model for model in record.hubs(found.model)}
    if "huggingface" in by_source and not words:
        assert by_source["huggingface"].id == "internlm/internlm2-chat-7b"
        assert by_source["huggingface"].revision.startswith("5b50661e")
    for one in by_source.values():
        assert "model.revision=v9" not in words or one.revision == "v9"
        assert "model.id=org/other" not in words or one.id == "org/other"


def test_what_is_no_table_is_refused():
    with pytest.raises(InputWrong, match=r"model\.huggingface"):
        settings.load("coach", ["model.huggingface=internlm/internlm2-chat-7b"])
    with pytest.raises(InputWrong, match=r"model\.huggingface\.commit"):
        settings.load("coach", ["model.huggingface.commit=5b50661e"])
