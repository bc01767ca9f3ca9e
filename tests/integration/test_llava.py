"""Both of LLaVA's stages on tiny models, by XTuner's own trainer, up to report and chat."""

import dataclasses
import io
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from benchmarks import families as tiny_families
from recipe.base_model import download, folder, tokenizer, visual_encoder
from recipe.cli.main import cli
from recipe.core import imports, resumable_download, settings
from recipe.core.errors import HostLacks, InputWrong, NotFetched, RunFailed
from recipe.core.hashing import below, digest, key_of, stamp
from recipe.core.run import Run
from recipe.inference import chat_model, loading, prompt, terminal
from recipe.intake import dataset as intake_dataset
from recipe.intake.images import IMAGE_TOKEN, image_folder
from recipe.planning import memory
from recipe.planning import tokens as planning_tokens
from recipe.reporting import compare, report, run_view, verify
from recipe.stages import data, pipeline
from recipe.stages import evaluate as evaluate_stage
from recipe.stages import merge as merge_stage
from recipe.stages.model import make
from recipe.stages.plan import inputs
from recipe.weights import checkpoint_reader, llava
from recipe.xtuner import config, preset_facts
from support.command import ROOT
from support.hub_server import Hub, certificate
from support.llava import FIRST, read, run_of

SECOND = "llava_internlm2_chat_7b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A CSV of 12 questions on six images of one colour."""
    return tiny_families.pictures(tmp_path_factory.mktemp("pairs"), times=2)


@pytest.fixture(scope="module")
def stages(tmp_path_factory, pairs):
    """Both stages, trained: (the projector's run, the run that goes on from it)."""
    place = tmp_path_factory.mktemp("llava")
    first = run_of(place, "first", FIRST, pairs)
    pipeline.run_stages(first, "train")
    second = run_of(
        place, "second", SECOND, pairs, f"model.pretrained_pth={first.folder}", "train.accumulative_counts=4"
    )
    pipeline.run_stages(second, "train")
    return first, second


@pytest.mark.parametrize(
    ("base", "words", "said"),
    [
        (FIRST, ["model.visual_encoder="], "model.visual_encoder=openai/clip-vit-large-patch14-336"),
        (FIRST, ["data.kind=pretrain"], "cannot take pretrain data"),
        (FIRST, ["model.pretrained_pth=x"], "trains a new projector"),
        (SECOND, [], "model.pretrained_pth=none"),
        ("internlm2_chat_7b_qlora_oasst1_e3", ["data.kind=image"], "LLaVA's presets"),
        (FIRST, ["train.evaluation_images=['a', 'b', 'c']"], "one for each"),
    ],
)
def test_recipes_that_are_refused(tmp_path, pairs, base, words, said):
    run = run_of(tmp_path, "x", base, pairs, *words)
    with pytest.raises(InputWrong) as caught:
        preset_facts.check(run.settings)
    assert said in str(caught.value)


def test_what_is_no_projector_is_refused(tmp_path, pairs):
    torch.save({"state_dict": {"llm.x": torch.zeros(2)}}, str(tmp_path / "iter_1.pth"))
    for given, said in (
        (tmp_path / "iter_1.pth", "holds no projector"),
        (tmp_path / "gone.pth", "neither a checkpoint"),
    ):
        run = run_of(tmp_path, "x", SECOND, pairs, f"model.pretrained_pth={given}")
        with pytest.raises(InputWrong, match=said):
            llava.pretrained_checkpoint(run)


# ---- CLIP, from a hub

CLIP = "org/clip"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Files of a tiny CLIP as the hubs have it, path → bytes: PyTorch's weights beside TensorFlow's and JAX's."""
    root = tmp_path_factory.mktemp("clip")
    run = Run("x", settings.load("tiny", ["model.visual_encoder=tiny"])[1], root, root)
    place = download.ensure(visual_encoder.encoder_run(run))
    files = {path.name: path.read_bytes() for path in place.iterdir() if path.suffix == ".json"}
    torch.save(load_file(str(place / "model.safetensors")), str(root / "pytorch_model.bin"))
    files["pytorch_model.bin"] = (root / "pytorch_model.bin").read_bytes()
    return {**files, "tf_model.h5": b"h5" * 99, "flax_model.msgpack": b"jax" * 99, "README.md": b"CLIP"}


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(encoder, tls, tmp_path, monkeypatch):
    made = Hub(encoder, *tls)
    made.id = CLIP
    for name, value in (
        ("MODELSCOPE_DOMAIN", made.address), ("HF_ENDPOINT", f"https://{made.address}"),
        ("REQUESTS_CA_BUNDLE", str(tls[0])), ("NO_PROXY", "localhost,127.0.0.1"),
        ("MODELSCOPE_CACHE", str(tmp_path / "modelscope")), ("XDG_CACHE_HOME", str(tmp_path)),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resumable_download, "TRIES", 2)
    yield made
    made.close()


@pytest.fixture
def asking(pairs, tmp_path):
    """Function: a run of the first stage whose base model is here and whose CLIP is at a hub."""

    def make(where="huggingface", encoder=CLIP):
        tiny = download.ensure(run_of(tmp_path, "base", FIRST, pairs))
        words = [f"model.source={where}", f"model.path={tiny}", f"model.visual_encoder={encoder}"]
        return dataclasses.replace(run_of(tmp_path, "asked", FIRST, pairs, *words), root=tmp_path)

    return make


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_clip_is_fetched_as_the_base_model_is(server, asking, encoder, tmp_path, monkeypatch, where):
    """Its settings for the plan, PyTorch's weights for training; each asked for once, and in no stage without a
    network.
    """
    run = asking(where)
    monkeypatch.setenv("RECIPE_FETCH", "no")
    with pytest.raises(NotFetched, match="visual encoder is not here yet") as told:
        visual_encoder.settings_folder(run)
    assert told.value.code == NotFetched.CODES["tokenizer"]
    monkeypatch.delenv("RECIPE_FETCH")
    [(what, place)] = tokenizer.download_for_plan(run)  # what docker/runtime/run asks for then
    assert (what, place) == ("visual encoder", tmp_path / "models" / ".download" / where / CLIP)
    light = {name for name in encoder if name.endswith((".json", ".md"))}
    assert set(server.sent) == light
    monkeypatch.setenv("RECIPE_FETCH", "no")
    pipeline.run_stages(run, "plan")
    assert run.figures("plan")["image_tokens"] == 16
    planned = key_of(inputs(run))
    with pytest.raises(NotFetched, match="visual encoder") as told:
        make(run, run.folder)
    assert told.value.code == NotFetched.CODES["model"]
    monkeypatch.delenv("RECIPE_FETCH")
    figures = make(run, run.folder)
    assert set(server.sent) == {*light, "pytorch_model.bin"}
    assert all(sent == len(encoder[name]) for name, sent in server.sent.items())
    assert figures["visual_encoder_commit"] == server.commit(0)
    assert key_of(inputs(run)) == planned
    seen = CLIPVisionModel.from_pretrained(str(tmp_path / "models" / CLIP)).state_dict()
    same = torch.load(io.BytesIO(encoder["pytorch_model.bin"]))
    assert all(torch.equal(seen[name], tensor) for name, tensor in same.items())


@pytest.mark.parametrize(
    ("status", "left_out", "kind", "said"),
    [
        (401, (), HostLacks, "private, gated or misspelt.*model.visual_encoder=/some/folder"),
        (404, (), InputWrong, "has no org/clip.*Check model.visual_encoder"),
        (0, ("pytorch_model.bin",), InputWrong, "no PyTorch weights.*model.visual_encoder"),
        (0, ("preprocessor_config.json",), InputWrong, "model.visual_encoder: .*is not a CLIP model"),
        (0, ("config.json",), InputWrong, "model.visual_encoder: .*is not a CLIP model"),
    ],
)
def test_a_clip_that_does_not_come_is_told(server, asking, status, left_out, kind, said):
    server.status = {"/": status} if status else {}
    for name in left_out:
        del server.history[0][name]
    with pytest.raises(kind, match=said) as told:
        visual_encoder.encoder_shape(asking())
    assert "\n" not in str(told.value)


def test_a_clip_that_comes_damaged_is_told(server, asking):
    server.corrupt.add("pytorch_model.bin")
    with pytest.raises(HostLacks, match=r"pytorch_model\.bin of org/clip arrived damaged"):
        download.ensure(visual_encoder.encoder_run(asking()))
    with pytest.raises(InputWrong, match=r"model\.visual_encoder: there is no folder \./gone"):
        visual_encoder.encoder_shape(asking(encoder="./gone"))


# ---- both stages


def test_the_plan_is_what_xtuner_does(stages, monkeypatch):
    """Lengths as its dataset has them, patches as its model puts them in, iterations as its sampler gives them."""
    imports.load()
    from mmengine.config import Config
    from mmengine.dataset import DefaultSampler
    from xtuner.dataset.samplers import LengthGroupedSampler
    from xtuner.model.utils import prepare_inputs_labels_for_multimodal
    from xtuner.registry import BUILDER

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as the trainer has it
    for run, sampler in zip(stages, (DefaultSampler, LengthGroupedSampler)):
        cfg = Config.fromfile(str(run.config))
        dataset = BUILDER.build(cfg.train_dataloader.dataset)
        figures = run.figures("plan")
        assert figures["image_tokens"] == 16
        one = dataset[0]
        built = BUILDER.build(cfg.model)
        seen = built.visual_encoder(one["pixel_values"][None], output_hidden_states=True)
        seen = built.projector(seen.hidden_states[built.visual_select_layer][:, 1:])
        assert seen.shape[1] == 16
        made = prepare_inputs_labels_for_multimodal(
            llm=built.llm, input_ids=torch.tensor([one["input_ids"]]), pixel_values=seen
        )
        assert made["inputs_embeds"].shape[1] == len(one["input_ids"]) + 15
        assert figures["tokens_kept"] == figures["tokens"] == sum(dataset.text_data["length"]) + 15 * len(dataset)
        options = {k: v for k, v in cfg.train_dataloader.sampler.items() if k != "type"}
        each = len(sampler(dataset, **options)) / cfg.batch_size
        assert figures["iterations"] == figures["iterations_per_epoch"] == each
        assert run.figures("train")["iterations"] == figures["iterations"]
    assert stages[1].figures("plan")["packs_repeated"] == 4  # 12 pairs in updates of 8


def test_the_memory_estimate_covers_all_parts(stages):
    """What it counts is what is there: CLIP's parameters, those that are trained, an image's tokens in the length."""
    first = stages[0]
    clip = visual_encoder.encoder_shape(first)
    encoder = CLIPVisionModel.from_pretrained(str(visual_encoder.encoder_folder(first)))
    assert clip.parameters == sum(weight.numel() for weight in encoder.parameters())
    assert (
        visual_encoder.CLIP_LARGE.parameters == 303_507_456
    )  # of openai/clip-vit-large-patch14-336, by its own config
    made = [clip.load(256, 2, rank) for rank in (0, 64)]
    figures = [run.figures("adapter") for run in stages]
    assert made[0].trained == figures[0]["projector"]
    assert made[1].trained == figures[1]["projector"] + figures[1]["visual_encoder_adapter"]
    seen = encoder(torch.zeros(2, 3, 56, 56), output_hidden_states=True).hidden_states[:-1]
    assert made[0].activations == sum(state.numel() for state in seen)
    held = [run.figures("plan")["memory"] for run in stages]
    shape = memory.shape_of_folder(folder.folder(first))
    assert held[0]["method"] == "projector"
    assert held[0]["disk"]["checkpoint"] == 12 * figures[0]["projector"]
    assert held[0]["disk"]["merged"] == 0 < held[1]["disk"]["merged"]
    tokens = 2 * (first.figures("plan")["longest_row"] + 15)
    alone = memory.estimate(shape, "projector", 16, tokens, 0, False, made[0])
    assert held[0]["mib"] == round(alone["total"] / memory.MIB)
    blind = memory.estimate(shape, "projector", 16, tokens, 0, False)
    more = 4 * clip.parameters + 16 * made[0].trained + 4 * made[0].activations
    assert alone["total"] - blind["total"] == more


def test_what_is_trained_is_what_the_preset_says(stages):
    first, second = (
        {name: held.read() for name, held in checkpoint_reader.read_checkpoint(run.checkpoint).items()}
        for run in stages
    )
    assert {name.split(".")[0] for name in first} == {"projector"}
    assert [run.figures("train")["lr_peak_logged"] for run in stages] == [0.004, 0.004]
    assert {name.split(".")[0] for name in second} == {"projector", "llm", "visual_encoder"}
    assert all(".lora_" in name for name in second if not name.startswith("projector."))
    assert all(float(held.abs().max()) > 0 for name, held in second.items() if ".lora_B." in name and "llm" in name)
    log = next(stages[1].folder.glob("checkpoints/*/train.log")).read_text(encoding="utf-8")
    assert "Load pretrained weight from" in log  # and from there it went on:
    for name in first:
        assert 0 < float((second[name] - first[name]).abs().max()) < 0.02  # a random one is 0.1 away


def test_the_parts_are_what_xtuner_converts(stages, tmp_path, monkeypatch):
    """`xtuner convert pth_to_hf`, run here, and every tensor beside ours."""
    from xtuner.tools.model_converters import pth_to_hf

    for run, parts in zip(stages, (["projector"], ["llm_adapter", "projector", "visual_encoder_adapter"])):
        place = tmp_path / run.name
        place.mkdir()
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        monkeypatch.setattr("sys.argv", ["pth_to_hf", str(run.config), str(run.checkpoint), str(place)])
        pth_to_hf.main()
        assert sorted(path.name for path in run.adapter.iterdir() if path.is_dir()) == parts
        for part in parts:
            [ours], [theirs] = (list((of / part).glob("*.safetensors")) for of in (run.adapter, place))
            one, other = load_file(str(ours)), load_file(str(theirs))
            assert set(one) == set(other), part
            assert all(torch.equal(one[name], other[name]) for name in one), part
            assert {held.dtype for held in one.values()} == {torch.float16 if part == "llm_adapter" else torch.float32}
        assert "xtuner chat" in (run.adapter / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_with_more_than_the_recipe_trains_is_refused(stages, tmp_path):
    first, second = stages
    base = {"base_model": "x", "base_sha256": "y"}
    with pytest.raises(RunFailed, match="not of this recipe"):
        llava.write_parts(second.checkpoint, tmp_path / "x", first.figures("config"), "fp16", base)


def test_the_image_is_seen(stages):
    """Another image gives other logits; before the image nothing changes."""
    for run in stages:
        found, folder = loading.find_model(run), image_folder(run) / "seen"
        model = chat_model.ChatModel(
            found.folder, prompt.template(run), found.adapter, vision=found.vision, image=folder / "red.png"
        )
        sight, made = llava.VisionTower(*found.vision, "cpu", torch.float32), []
        for name in ("red", "blue"):
            model.image = sight.embed(folder / f"{name}.png")
            made.append(model.embed_prompt("", [("一", "二")], "三<image>"))
        assert made[0].shape == made[1].shape
        with torch.no_grad():
            red, blue = (model.model(inputs_embeds=embeds).logits for embeds in made)
        start = len(model.tokenizer(model.template.INSTRUCTION.split("{input}")[0])["input_ids"])
        assert torch.equal(red[:, :start], blue[:, :start])
        assert not torch.allclose(red[:, -1], blue[:, -1])
    said = []
    for image in ("red", "blue"):
        model.image = sight.embed(folder / f"{image}.png")
        said.append(model.answer("", [], "什么颜色？", limit=2))
    assert all(isinstance(one.text, str) for one in said)


def test_a_question_about_an_image(stages, pairs, tmp_path):
    """At the command line: of the run that is there, and refused for a run that was not trained on images."""
    second = stages[1]
    (tmp_path / "second.toml").write_text(f'base = "{SECOND}"\n[data]\nfiles = ["{pairs}"]\n', encoding="utf-8")
    words = ["chat", str(tmp_path / "second.toml"), "什么颜色？", f"image={pairs.parent / 'seen' / 'red.png'}"]
    second.save()
    result = CliRunner().invoke(cli, [*words, "--output", str(second.output)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.strip()


def test_chat_tells_what_it_cannot_see(stages, tmp_path, monkeypatch):
    first, second = stages
    for run, words, said in (
        (first, ("base", "x.png"), "no projector"), (second, ("", "gone.png"), "does not exist"),
        (second, ("", str(second.config)), "cannot be read as an image"),
    ):  # fmt: skip
        with pytest.raises(InputWrong, match=said):
            terminal.talk(run, "问", *words)


def test_merge_takes_the_language_model_and_not_the_projector_alone(stages):
    first, second = stages
    with pytest.raises(InputWrong, match=r"is not merged.*model\.pretrained_pth="):
        pipeline.run_stages(first, "merge")
    pipeline.run_stages(second, "merge", (merge_stage.STAGE,))
    assert second.figures("merge")["tensors_changed"] > 0
    assert loading.find_model(second, "merged").vision[1] == second.adapter


@pytest.fixture
def finished(stages, pairs, tmp_path):
    """Copies of both runs' folders and of their data, the second one merged: function that finds the run of one."""
    pipeline.run_stages(stages[1], "merge", (merge_stage.STAGE,))
    for run in stages:
        run.save()
        shutil.copytree(str(run.folder), str(tmp_path / run.name))
        text = (tmp_path / run.name / "run.json").read_text(encoding="utf-8")
        text = text.replace(str(pairs.parent), str(tmp_path / "pairs")).replace(str(run.output), str(tmp_path))
        (tmp_path / run.name / "run.json").write_text(text, encoding="utf-8")
    shutil.copytree(str(pairs.parent), str(tmp_path / "pairs"))
    return lambda name: run_view.find_run(str(tmp_path / name), ROOT, tmp_path)


@pytest.fixture
def look(finished, tmp_path, monkeypatch):
    """Function: {check: (verdict, detail)} of one of the copies."""
    monkeypatch.setenv("RECIPE_FETCH", "no")
    times = iter(range(9))
    return lambda name: {
        line.name: line[1:] for line in verify.check_run(finished(name), tmp_path / f"beside{next(times)}")
    }


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def test_verify_repeats_the_checks_of_both_stages(look):
    for name, more in (("first", ()), ("second", ("merged", "merged model minus base", "first stage's projector"))):
        found = look(name)
        assert {verdict for verdict, _ in found.values()} == {verify.OK}, found
        for what in ("images", "visual encoder", "plan, recreated", "config, recreated", *more):
            assert what in found
        assert found["images"] == (verify.OK, "6 images unchanged")
    assert found["adapter, recreated"][1].startswith("22 tensors, projector, visual encoder adapter from")


def test_verify_names_every_damaged_file(finished):
    files = []
    for name in ("first", "second"):
        run = finished(name)
        for entry in run.manifest["stages"].values():
            for what, made in entry["outputs"].items():
                for path in below(run.folder / what):
                    whole = path.read_bytes()
                    path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1 if whole else 1])
                                     + whole[len(whole) // 2 + 1 :])  # fmt: skip
                    line = verify._check_output(run.folder / what, what, made)
                    assert line.verdict == verify.DIFFERS
                    if (run.folder / what).is_dir():
                        assert line.detail.endswith(f": {path.relative_to(run.folder / what)}")
                    path.write_bytes(whole)
                    files.append(path.name)
    assert files.count("README.md") == 3
    assert len(files) > 30


def test_verify_finds_what_the_images_were_seen_by(finished, look, tmp_path):
    """Damaged: an image, the encoder, the first stage's checkpoint, a part of LLaVA's of which the manifest knows."""
    second = finished("second")
    flip(tmp_path / "pairs" / "seen" / "red.png")
    flip(finished("first").checkpoint)
    [weights] = (second.adapter / "projector").glob("*.safetensors")
    flip(weights)
    manifest = second.manifest
    manifest["stages"]["adapter"]["outputs"]["adapter"] = {"sha256": digest(second.adapter), "stamp": []}
    manifest["stages"]["model"]["figures"]["visual_encoder"]["config.json"] = "0" * 64
    (second.folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = look("second")
    assert found["images"] == (verify.DIFFERS, "changed: seen/red.png")
    assert found["data, recreated"] == (verify.NOT_HERE, "needs the original images")
    assert found["adapter"][0] == verify.OK
    assert found["adapter, recreated"] == (
        verify.DIFFERS, f"projector/{weights.name}: differs from the checkpoint"
    )  # fmt: skip
    assert found["visual encoder"][0] == verify.DIFFERS
    assert found["visual encoder"][1].endswith(": config.json")
    assert found["first stage's projector"][0] == verify.DIFFERS
    assert found["merged model minus base"][0] == verify.OK
    (tmp_path / "pairs" / "seen" / "red.png").unlink()
    shutil.rmtree(str(tmp_path / "first"))
    found = look("second")
    assert found["images"] == (verify.NOT_HERE, "seen/red.png: missing")
    assert found["first stage's projector"][0] == found["config, recreated"][0] == verify.NOT_HERE


def test_report_and_diff_tell_what_was_trained_to_see(finished):
    first, second = finished("first"), finished("second")
    for run, page_has, card_has in (
        (first, "this stage trains only the projector", "tags: [xtuner, llava]"),
        (second, "visual encoder adapter, ", "tags: [xtuner, lora, llava]"),
    ):
        page = report.write(run, is_running=False).read_text(encoding="utf-8")
        card = (run.folder / "report" / "README.md").read_text(encoding="utf-8")
        assert page_has in page
        assert card_has in card
        assert "library_name: xtuner" in card
        for there in ("visual encoder", "projector, 74,240 parameters", "16 tokens per image"):
            assert there in page
            assert there in card
        assert "questions with different answers" not in page  # of several images
        assert "old version of the checkpointing" not in page
        assert "kept by packing" not in page + card
    found, _ = compare.differences(run_view.read_run(first), run_view.read_run(second))
    found = {(one.group, one.item): (one.first, one.second) for one in found}
    assert found["result", "visual encoder adapter, parameters"] == ("—", "86,016")
    assert found["model", "first stage's checkpoint, sha256"] == ("none", digest(first.checkpoint))
    assert ("result", "adapter, sha256") in found
    assert not [what for group, what in found if group == "data"]


def held(name, finished, tmp_path, monkeypatch):
    """One of the copies with its first rows as what was held out."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path / "cache"))
    run = finished(name)
    run.force = True
    lines = run.dataset.read_text(encoding="utf-8").splitlines(keepends=True)
    run.eval_dataset.write_text("".join(lines[:4]), encoding="utf-8")
    run.manifest["stages"]["data"]["outputs"]["eval.jsonl"]["sha256"] = digest(run.eval_dataset)
    run.settings = settings.replace(run.settings, "eval", {"answers": 2, "max_new_tokens": 4})
    return run


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_held_out_loss_is_that_of_xtuners_model(name, finished, tmp_path, monkeypatch):
    """LLaVAModel's as the config builds it, and with the checkpoint's weights, over XTuner's dataset of what is held
    out. The first stage's projector is a random one before: there the base reads without an image.
    """
    from mmengine.config import Config
    from xtuner.registry import BUILDER

    def loss(model, blind=False):
        """Over all tokens with loss."""
        total = tokens = 0
        for one in BUILDER.build(cfg.train_dataloader.dataset):
            given = {key: torch.tensor([one[key]]) for key in ("input_ids", "labels")}
            count = int((given["labels"] >= 0).sum())
            if blind:
                seen = given["input_ids"] >= 0
                given = {key: value[seen][None] for key, value in given.items()}
            else:
                given["pixel_values"] = one["pixel_values"][None]
            with torch.no_grad():
                total += count * float(model.eval()(given, mode="loss")["loss"])
            tokens += count
        return total / tokens

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = held(name, finished, tmp_path, monkeypatch)
    cfg = Config.fromfile(str(run.config))
    cfg.train_dataloader.dataset.data_path = str(run.eval_dataset)
    assert cfg.train_dataloader.dataset.pad_image_to_square == (name == "second")
    built = BUILDER.build(cfg.model)
    before = loss(built, blind=name == "first")
    built.load_state_dict(torch.load(str(run.checkpoint), map_location="cpu")["state_dict"], strict=False)
    models = evaluate_stage.make(run, run.folder)["models"]
    assert models["base"]["loss"] == pytest.approx(before, abs=1e-4)
    assert models["tuned"]["loss"] == pytest.approx(loss(built), abs=2e-3 if name == "second" else 1e-4)  # merged: fp16
    told = json.loads((run.folder / "eval.json").read_text(encoding="utf-8"))
    assert told["conversations"] == 4
    assert [one["image"] for one in told["samples"]] == ["seen/red.png", "seen/blue.png"]
    assert IMAGE_TOKEN not in json.dumps(told)
    page = report.write(run, is_running=False).read_text(encoding="utf-8")
    assert "<code>seen/red.png</code>" in page


def test_an_image_that_was_changed_is_not_measured(finished, tmp_path, monkeypatch):
    run = held("first", finished, tmp_path, monkeypatch)
    flip(tmp_path / "pairs" / "seen" / "red.png")
    with pytest.raises(InputWrong, match=r"seen/red\.png is not the image that was held out"):
        evaluate_stage.make(run, run.folder)


def test_an_image_that_changed_trains_again(stages, pairs):
    """Its sum stands in the data, so that no stage passes for current."""
    _, second = stages
    _, rows = read(second)
    before = second.dataset.read_bytes()
    path = pairs.parent / rows[0]["image"]
    held, times = path.read_bytes(), stamp(path)
    key = data.inputs(second)["images"]
    try:
        Image.new("RGB", (50, 50), "orange").save(str(path))
        assert stamp(path) != times
        assert data.inputs(second)["images"] != key
        read(second)
        assert second.dataset.read_bytes() != before
    finally:
        path.write_bytes(held)


def test_the_preview_shows_where_the_image_is(stages):
    from recipe.reporting import data_report

    conversation = next(intake_dataset.conversations(stages[0].dataset))
    pieces = data_report.TokenView(stages[0]).pieces(conversation)
    assert IMAGE_TOKEN in [text for text, _ in pieces]
    assert planning_tokens.count([conversation], None, tokenizer.tokenizer(stages[0]), 99, True)["lengths"][0] > 5


def test_dtypes_of_the_first_stage(tmp_path, pairs):
    """4 bits as shipped, computed in bf16; none in fp32."""
    run = run_of(tmp_path, "x", FIRST, pairs)
    assert "BitsAndBytesConfig," not in config.render(run.settings, "m", "d", {}).split("model = dict")[1]
    again = settings.replace(run.settings, "train.dtype", "bf16")
    text = config.render(again, "m", "d", {})
    assert preset_facts.flat(text)["model.llm.quantization_config.bnb_4bit_compute_dtype"] == "torch.bfloat16"


def test_the_trainers_questions_meet_16_bit_weights_and_an_fp32_projector(stages, monkeypatch):
    """As on a GPU without DeepSpeed; on the CPU half precision is bf16."""
    from types import SimpleNamespace

    from mmengine.config import Config
    from xtuner.engine.hooks import EvaluateChatHook
    from xtuner.registry import BUILDER

    from recipe.training.hooks import ImageChatHook

    first, _ = stages
    monkeypatch.chdir(first.root)
    cfg = Config.fromfile(str(first.config))
    cfg.model.llm.torch_dtype = torch.bfloat16
    model = BUILDER.build(cfg.model)
    asked = cfg.custom_hooks[1]
    assert asked.pop("type") == "recipe.training.hooks.ImageChatHook"
    said = []
    runner = SimpleNamespace(
        model=model, cfg=cfg, logger=SimpleNamespace(info=said.append),
        optim_wrapper=SimpleNamespace(cast_dtype=torch.bfloat16),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        EvaluateChatHook(**asked).before_train(runner)
    said.clear()
    ImageChatHook(**asked).before_train(runner)
    assert len(said) == 1 + len(asked.evaluation_inputs)
    assert all("Sample output" in line for line in said[1:])
