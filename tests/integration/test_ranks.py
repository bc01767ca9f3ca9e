"""Two ranks, on two machines and on one: XTuner's trainer under torchrun and DeepSpeed ZeRO-2, on the CPU.

More of it (ZeRO-3, offloading, against one rank, a cable pulled) takes minutes: just ranks.
"""

import json
import signal
import time

import pytest

from benchmarks import ranks

WORDS = (ranks.ZERO2, "train.max_epochs=1")


# Only the loopback device is there, as in a container without a network.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Training on two machines, of which one is killed, then typed again on both: (folder, what was seen)."""
    output = tmp_path_factory.mktemp("machines")
    seen = {}
    with ranks.machines() as (first, second):
        children = [first.start(output, "nodes=2", *WORDS), second.start(output, "nodes=2", *WORDS, name="second")]
        ranks.until(lambda: len(ranks.iterations(output)) >= 2, children[0])
        started = ranks.family(children[1].pid)
        began = time.time()
        children[1].send_signal(signal.SIGKILL)
        children[1].wait()
        seen["left"] = ranks.alive(started)
        seen["started"] = len(started)
        seen["code"] = children[0].wait(timeout=300)
        seen["seconds"] = time.time() - began
        seen["said"] = ranks.said(output)
        children = [first.start(output, "nodes=2", *WORDS), second.start(output, "nodes=2", *WORDS, name="second")]
        seen["adapter"] = ranks.finished(children[0], output)
        seen["second"] = children[1].wait(timeout=300)
    return output, seen


def test_a_machine_that_ends_ends_the_other_with_a_clear_word(ended):
    _, seen = ended
    assert seen["code"] == 1
    assert "The connection to another machine ended" in seen["said"], seen["said"]
    assert "type the same command again on all machines" in seen["said"]
    assert "Traceback" not in seen["said"]
    assert seen["seconds"] < 120


def test_no_rank_outlives_the_command(ended):
    _, seen = ended
    assert seen["started"] >= 2  # torchrun and a rank
    assert seen["left"] == []


def test_two_machines_give_the_bytes_of_two_ranks_on_one(ended, tmp_path):
    output, seen = ended
    allowed = ranks.may(ALONE)
    one = ranks.Machine(0, ALONE if allowed else ())
    assert ranks.finished(one.start(tmp_path, "gpus=2", *WORDS), tmp_path) == seen["adapter"]
    for folder, resumed in ((output, True), (tmp_path, False)):
        manifest = json.loads((folder / "tiny" / "run.json").read_text(encoding="utf-8"))["stages"]
        figures, planned = manifest["train"]["figures"], manifest["plan"]["figures"]
        assert figures["ranks"] == planned["ranks"] == 2
        assert figures["iterations"] == figures["updates"] == planned["iterations"] == 17  # 33 packs, two at once
        assert planned["packs_repeated"] == 1
        assert bool(figures["resumed_from"]) == resumed


def test_what_is_said_by_machines_and_log(ended):
    output, seen = ended
    assert seen["second"] == 0
    assert "Ended at iteration 17 of 17" in ranks.said(output, "second")
    assert ranks.said(output).count("training 17/17") == 1  # rank 0 alone
    log = next(output.glob("tiny/checkpoints/*/train.log")).read_text(encoding="utf-8")
    assert log.count("Iter(train) [17/17]") == 1


def test_a_checkpoint_counts_only_with_every_ranks_part(ended):
    from recipe.training import checkpoints

    output, _ = ended
    place = next(output.glob("tiny/checkpoints/*"))
    newest = checkpoints.last_checkpoint(place)
    assert newest.name == "iter_17.pth"
    parts = sorted(newest.glob("*_optim_states.pt"))
    assert len(parts) == 2
    parts[1].rename(place / "aside")
    try:
        assert checkpoints.last_checkpoint(place).name == "iter_16.pth"
    finally:
        (place / "aside").rename(parts[1])
    assert checkpoints.last_checkpoint(place) == newest
