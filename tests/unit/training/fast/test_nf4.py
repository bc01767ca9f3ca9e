"""Who dequantizes the weights decides what is recorded."""

from types import SimpleNamespace

import torch

from recipe.training.fast import nf4


def test_what_is_recorded_follows_from_who_lays_the_weights_out(monkeypatch):
    inner = SimpleNamespace(blocksize=256)
    state = SimpleNamespace(quant_type="nf4", blocksize=64, nested=True, state2=inner)
    weight = SimpleNamespace(quant_state=state, is_cuda=True)
    versions = {"0.43.0": False, "0.43.3": False, "0.44.0": True, "0.50.2": True, "1.0.0": True}
    for release, records in versions.items():
        nf4.uses_legacy_stream.cache_clear()
        monkeypatch.setattr(nf4.metadata, "version", lambda name, release=release: release)
        for ours in (True, False):
            monkeypatch.setattr(nf4, "HAS_KERNEL", ours)
            assert (nf4.graph_obstacle(weight) == "") == (records and ours)
    nf4.uses_legacy_stream.cache_clear()
    assert nf4.graph_obstacle(torch.zeros(2)) == ""  # 16-bit weights are nobody's to lay out
