"""InternLM2's classes, our own, by the names that a rendered config loads them by. None of a folder's own code runs."""

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM
from recipe.base_model.tiny.tokenization_internlm2 import InternLM2Tokenizer

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2Tokenizer"]
