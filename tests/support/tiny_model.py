"""Texts and sizes of the tiny InternLM2 under test."""

from functools import partial

from recipe.base_model import tiny

TEXTS = [
    f"我在{place}工作{years}年了，{trouble}，怎么办？\n先深呼吸，再把最要紧的一件事写下来，今天只做它。"
    for years, place in enumerate(("工厂", "学校", "医院", "银行", "小公司"), 1)
    for trouble in ("总是焦虑", "怕开会发言", "和领导合不来", "睡不着", "想辞职")
]


SIZES = {"vocab_size": 640, "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 96}


make = partial(tiny.make, **SIZES, max_shard_size="100KB")
