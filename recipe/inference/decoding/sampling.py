"""Chooses the next tokens: transformers' own processors, so that the same seed gives the tokens of `generate`."""

import copy
from typing import Any, Dict

import torch


class Sampler:
    """`settings`: arguments of `generate`, such as do_sample, temperature, top_k, top_p, repetition_penalty; the rest
    comes from the model's generation_config.
    """

    def __init__(self, causal_lm: Any, settings: Dict[str, Any], prompts: torch.Tensor) -> None:
        from transformers import LogitsProcessorList

        self.config = copy.deepcopy(causal_lm.generation_config)
        self.config.update(**settings)
        self.processors = causal_lm._get_logits_processor(
            generation_config=self.config, input_ids_seq_length=prompts.shape[1], encoder_input_ids=prompts,
            prefix_allowed_tokens_fn=None, logits_processor=LogitsProcessorList(),
        )  # fmt: skip
        if self.config.do_sample:
            self.processors.extend(causal_lm._get_logits_warper(self.config))

    def choose(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each row, from all tokens so far (batch, tokens) and the logits (batch, vocabulary)."""
        scores = self.processors(ids, logits)
        if not self.config.do_sample:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)


def is_supported(settings: Dict[str, Any], config: Any) -> bool:
    """Whether these are settings of greedy search or sampling, not of a search with beams."""
    wanted = {name: settings.get(name, getattr(config, name, None)) for name in ("num_beams", "penalty_alpha")}
    return wanted["num_beams"] in (None, 1) and not wanted["penalty_alpha"]
