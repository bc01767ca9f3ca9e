"""Chooses the next tokens: transformers' own processors, so that the same seed gives the tokens of `generate`."""

import copy
from typing import Any, Dict, Union

import torch
from transformers import GenerationConfig, LogitsProcessorList

Settings = Union[Dict[str, Any], GenerationConfig]


class Sampler:
    """`settings`: arguments of `generate`, such as do_sample, temperature, top_k, top_p, repetition_penalty, while the
    rest comes from the model's generation_config; or a GenerationConfig, which holds everything.
    """

    def __init__(self, causal_lm: Any, settings: Settings, prompts: torch.Tensor) -> None:
        self.config = whole(settings, causal_lm.generation_config)
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


def whole(settings: Settings, models: GenerationConfig) -> GenerationConfig:
    """All settings; `models`: the model's own."""
    if isinstance(settings, GenerationConfig):
        return settings
    config = copy.deepcopy(models)
    config.update(**settings)
    return config


def is_supported(settings: Settings, models: GenerationConfig) -> bool:
    """Whether these are settings of greedy search or sampling, not of a search with beams."""
    config = whole(settings, models)
    return config.num_beams == 1 and not config.penalty_alpha
