"""The configuration of InternLM2, with the fields of the published checkpoints."""

from __future__ import annotations

from transformers.configuration_utils import PretrainedConfig


class InternLM2Config(PretrainedConfig):
    """Sizes and switches of an InternLM2 model; the defaults are those of the 7B chat model.

    `rope_scaling` is None or {"type": "dynamic", "factor": f} with f >= 1; transformers 5 writes `rope_parameters`
    instead of it and `rope_theta`. `attn_implementation` is ignored, because there is only one. Raises ValueError for
    any other `rope_scaling`, heads that do not divide the width, key-value heads that do not divide the heads, and an
    odd head width.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=92544,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        hidden_act="silu",
        max_position_embeddings=32768,
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        use_cache=True,
        bias=False,
        rope_theta=1000000,
        rope_scaling=None,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        rope_parameters=None,
        attn_implementation=None,
        **kwargs,
    ):
        if rope_parameters:
            rope_scaling = dict(rope_parameters)
            rope_theta = rope_scaling.pop("rope_theta", rope_theta)
        if rope_scaling and rope_scaling.get("type", rope_scaling.get("rope_type")) in (None, "default"):
            rope_scaling = None
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self._check_heads()
        self._check_rope_scaling()
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    def _check_heads(self):
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of the {heads} heads")
        if heads % groups:
            raise ValueError(f"{groups} key-value heads do not divide {heads} heads")

    def _check_rope_scaling(self):
        scaling = self.rope_scaling
        if scaling is None:
            return
        # Newer transformers rename `type` to `rope_type` in place.
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind != "dynamic" or not scaling.get("factor", 0) >= 1:
            raise ValueError(f"rope_scaling must be {{'type': 'dynamic', 'factor': >= 1}}, not {scaling}")
