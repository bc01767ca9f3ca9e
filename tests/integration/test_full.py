"""Full fine-tuning: the checkpoint becomes the model, up to the whole way of a tiny Llama."""

import contextlib
import json

import pytest
import torch

from benchmarks import families
from benchmarks.bench_adapter import write_zero
from recipe.core.errors import InputWrong, RunFailed
from recipe.export import gguf_writer
from recipe.weights import merge
from recipe.weights import merge_plan as plans
from support.models import sharded


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny InternLM2 in shards."""
    return sharded(tmp_path_factory.mktemp("full") / "base", layers=2)


@pytest.fixture(scope="module")
def trained(base):
    """Its weights after training, fp32, by XTuner's names."""
    torch.manual_seed(0)
    held = {name: tensor.read().float() for name, tensor in plans.base_tensors(base).items()}
    return {f"llm.{name}": tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in held.items()}


def whole(base, checkpoint, place, **more):
    plan = merge.make_plan(base, [], merge.parse_size("100KB"), checkpoint=checkpoint, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "check_loads", lambda _: contextlib.nullcontext(lambda *_: {"stops": [2]}))
        return merge.merge(plan, place)


@pytest.mark.parametrize("form", ["file", "zero1 of 1", "zero2 of 3", "zero3 of 2"])
def test_the_checkpoint_becomes_the_model(base, trained, tmp_path, form):
    """Every weight rounded once to the base's type, whatever form the trainer left."""
    checkpoint = tmp_path / "iter_9.pth"
    if form == "file":
        torch.save({"state_dict": trained, "optimizer": {"state": {}}, "meta": {"iter": 9}}, str(checkpoint))
    else:
        write_zero(checkpoint, [trained], int(form[4]), int(form[-1]))
    figures = whole(base, checkpoint, tmp_path / "merged")
    found = plans.base_tensors(tmp_path / "merged")
    assert {f"llm.{name}" for name in found} == set(trained)
    for name, tensor in found.items():
        assert torch.equal(tensor.read(), trained[f"llm.{name}"].half()), name
    assert figures["tensors_changed"] == figures["tensors"] == len(trained)
    assert figures["weights_check"]["arrived"] == pytest.approx(1, abs=1e-2)
    assert figures["shards"] > 1


def test_what_is_not_this_model_is_refused(base, trained, tmp_path):
    names = list(trained)
    other = {**trained, names[1]: torch.zeros(3, 3)}
    less = {name: trained[name] for name in names[1:]}
    lora = {"llm.base_model.model.wo.lora_A.default.weight": torch.zeros(2, 2)}
    for number, (state, said) in enumerate(
        ((other, "does not fit"), (less, "does not hold"), (lora, "not hold all of the model"))
    ):
        path = tmp_path / f"iter_{number + 1}.pth"
        torch.save({"state_dict": state}, str(path))
        with pytest.raises((InputWrong, RunFailed), match=said):
            whole(base, path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tiny_llama_goes_the_whole_way(tmp_path):
    """Texts of a folder, all weights trained, the model written, loaded and asked: no word of InternLM2 in it."""
    found = families.go("llama-pretrain", tmp_path, evaluate=False)
    assert (found["method"], found["kind"]) == ("full", "pretrain")
    assert found["updates"] == found["planned"] > 10
    assert found["tensors_changed"] == found["tensors"] == 21
    assert found["loss_last"] < found["loss_first"]
    assert found["arrived"] == pytest.approx(1, abs=0.01)
    held = json.loads((found["folder"] / "plan.json").read_text(encoding="utf-8"))["memory"]
    assert held["method"] == "full"
    assert held["trained"] >= 3 * held["weights"] - 2
    made = next(found["folder"].glob("checkpoints/*/iter_*"))
    assert made.stat().st_size == pytest.approx(held["disk"]["checkpoint"], rel=0.1)
    with pytest.raises(InputWrong, match="not an InternLM2 weight"):
        gguf_writer.gguf_names("model.embed_tokens.weight")
