"""A merge that changed nothing, or a wrong weight."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from recipe.core.errors import RunFailed
from recipe.weights import merge
from support.lora_merge import join, weights


def test_an_adapter_that_changes_nothing_is_measured(base, adapter, tmp_path):
    shutil.copytree(str(adapter), str(tmp_path / "adapter"))
    found = load_file(str(adapter / "adapter_model.safetensors"))
    found = {name: (t * 1e-9 if ".lora_B." in name else t) for name, t in found.items()}
    save_file(found, str(tmp_path / "adapter" / "adapter_model.safetensors"))
    figures = join(base, [tmp_path / "adapter"], tmp_path / "out")
    assert figures["tensors_changed"] == figures["weights_changed"] == figures["share_changed"] == 0
    assert figures["kinds"]["wqkv"]["largest"] == figures["weights_check"]["arrived"] == 0


def test_a_wrong_weight_in_the_written_file_is_found(base, adapter, tmp_path):
    """Taking the base away again must leave the adapter: wrong arithmetic and copied weights that differ are seen."""
    plan = merge.make_plan(base, [(adapter, 1.0)], 10**9)
    join(base, [adapter], tmp_path / "out", "1GB")
    assert merge.check_weights(plan, tmp_path / "out")["arrived"] == pytest.approx(1, abs=0.01)
    path = next((tmp_path / "out").glob("*.safetensors"))
    right = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}  # not a view of the file
    for name in ("model.layers.1.feed_forward.w2.weight", "model.norm.weight"):
        save_file({n: t * 1.01 if n == name else t for n, t in right.items()}, str(path), {"format": "pt"})
        with pytest.raises(RunFailed, match=name):
            merge.check_weights(plan, tmp_path / "out")
    save_file(weights(base), str(path), {"format": "pt"})  # nothing was merged
    with pytest.raises(RunFailed, match="differ from base"):
        merge.check_weights(plan, tmp_path / "out")
