"""Which verdict of the log counts."""

import json

from recipe.training.fast import verdict


def test_the_log_of_the_last_start_that_compared_counts():
    first = {"compared": "against_stock", "passed": False, "error": "kernel gone"}
    later = {
        "compared": "against_stock",
        "passed": True,
        "loss_difference": 1e-7,
        "layer_difference": None,
        "worst": "w",
    }
    stamp = "11/29 07:00:00 - mmengine - INFO - " + verdict.MARK
    log = f"\n$ python\n{stamp}{json.dumps(first)}\n\n$ python --resume\n{stamp}{json.dumps(later)}\nIter(train) …\n"
    assert verdict.parse_log(log) == {"against_stock": later}
    assert verdict.parse_log(log + "\n$ python --resume\nended at once\n") == {"against_stock": later}
    assert verdict.parse_log("nothing") == {}
    assert "nan" in verdict.summary({"against_stock": later})
    assert "kernel gone" in verdict.summary({"against_stock": first})
