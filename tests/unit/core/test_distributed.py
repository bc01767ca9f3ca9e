"""Several machines and GPUs: which rank this is, and what they share."""

import os

import pytest

from recipe.core import distributed, hardware, settings
from recipe.core.errors import HostLacks, InputWrong


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"NODE_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}, (1, "here", 1234)),
        ({"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[007-009,12],b"}, (0, "gpu007", 29500)),
        ({"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "a,b[1-2]"}, (1, "a", 29500)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}, (1, "10.0.0.4", 29500)),
        ({"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "23456"}, (1, "m", 23456)),
        ({"NODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "here"}, "nodes=2, the environment says 3"),
        ({"NODE_RANK": "1"}, "NODES=2 NODE_RANK=0"),
        ({"NODE_RANK": "2", "MASTER_ADDR": "here"}, "Node 2 of 2"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "0"}, "a port"),
    ],
)  # fmt: skip
def test_a_machine_finds_its_place(monkeypatch, told, expected):
    for name in [name for name in os.environ if name.startswith(("NODE", "MASTER", "SLURM", "SKYPILOT", "PET_"))]:
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = settings.load("coach", ["nodes=2"])[1]
    if isinstance(expected, str):
        with pytest.raises(InputWrong, match=expected):
            distributed.node(found)
    else:
        assert distributed.node(found) == expected
    assert distributed.node(settings.load("coach")[1]) is None


def test_an_update_is_shared_equally_or_not_at_all():
    for batch in range(1, 9):
        for accumulation in range(1, 17):
            for together in (1, 2, 3, 4, 6, 8):
                found = distributed.divide_update(batch, accumulation, together)
                if found:
                    assert found[0] * found[1] * together == batch * accumulation
                else:
                    assert (batch * accumulation) % together
    with pytest.raises(InputWrong, match=r"train\.batch_size=1 train\.accumulative_counts=8\."):
        distributed.update_per_rank(settings.load("coach", ["gpus=8"])[1], 2, 3)


UUIDS = ("GPU-12ab", "GPU-34cd", "GPU-5", "GPU-6")


@pytest.mark.parametrize(
    ("names", "usable"), [(None, 4), ("", 0), ("0,1", 2), ("2", 1), ("0,7,1", 1), ("GPU-12,GPU-34", 2), ("-1", 0)]
)
def test_cards_that_are_hidden_do_not_count(monkeypatch, names, usable):
    cards = [hardware.Card([str(n), uuid, "x", "1", "1", "1", "", "", "8.0"]) for n, uuid in enumerate(UUIDS)]
    monkeypatch.setattr(hardware, "query", lambda: (cards, None))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    wanted = settings.load("coach", [f"gpus={usable + 1}"])[1]
    with pytest.raises(HostLacks, match=f"gpus={usable + 1}: {usable} can be used here"):
        distributed.check_gpu_count(wanted)
    if usable:
        distributed.check_gpu_count(settings.load("coach", [f"gpus={usable}"])[1])


def test_four_bit_weights_are_not_cut():
    with pytest.raises(InputWrong, match=r"train\.method=lora with it"):
        settings.load("coach", ["train.deepspeed=deepspeed_zero3"])
    assert settings.load("coach", ["train.deepspeed=deepspeed_zero3", "train.method=lora"])
