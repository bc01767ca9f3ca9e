"""InternLM2: grouped-query attention, rotary positions and SwiGLU. One file, because it is copied into model folders.

For transformers 4.36 (legacy tuple key-value cache) and later. Module names, and the class names by which XTuner
replaces the attention, are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_internlm2 import InternLM2Config


class InternLM2RMSNorm(nn.Module):
    """Divides (..., hidden) by its root mean square, computed in float32."""

    def __init__(self, hidden_size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        wide = hidden_states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(hidden_states.dtype)


class InternLM2RotaryEmbedding(nn.Module):
    """The cosines and sines of rotary positions."""

    def __init__(self, dim, max_position_embeddings=32768, base=1000000, device=None):
        super().__init__()
        self.dim = dim
        self.max_position_embeddings = max_position_embeddings
        self.base = base
        # XTuner's replacement reads these two.
        self.max_seq_len_cached = max_position_embeddings
        inv_freq = self.frequencies(base, device)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def frequencies(self, base, device):
        """The dim / 2 angular frequencies in radians per token, float32."""
        steps = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return 1.0 / base ** (steps / self.dim)

    def base_for(self, seq_len):
        """The base of the frequencies for a sequence of `seq_len` tokens."""
        return self.base

    def forward(self, x, seq_len):
        """Return cos and sin, each (seq_len, dim), with x's device and dtype."""
        # Not from the buffer: casting the model to float16 rounds it.
        inv_freq = self.frequencies(self.base_for(seq_len), x.device)
        positions = torch.arange(seq_len, device=x.device, dtype=torch.float32)
        angles = torch.outer(positions, inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class InternLM2DynamicNTKScalingRotaryEmbedding(InternLM2RotaryEmbedding):
    """Rotary positions whose base grows for sequences longer than max_position_embeddings."""

    def __init__(self, dim, max_position_embeddings=32768, base=1000000, device=None, factor=1.0):
        super().__init__(dim, max_position_embeddings, base, device)
        self.factor = factor

    def base_for(self, seq_len):
        if seq_len <= self.max_position_embeddings:
            return self.base
        stretch = self.factor * seq_len / self.max_position_embeddings - (self.factor - 1)
        return self.base * stretch ** (self.dim / (self.dim - 2))


def rotate_half(x):
    """Turn the halves (a, b) of the last dimension into (-b, a)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def rotate(x, cos, sin, position_ids):
    """Rotate x (batch, heads, tokens, head_dim) to its position_ids (batch or 1, tokens)."""
    return x * cos[position_ids].unsqueeze(1) + rotate_half(x) * sin[position_ids].unsqueeze(1)


class InternLM2MLP(nn.Module):
    """SwiGLU: w2(act(w1 x) * w3 x)."""

    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class InternLM2Attention(nn.Module):
    """Grouped-query attention with one fused projection.

    The rows of `wqkv` are laid out as (kv_head, groups + 2, head_dim): the group's queries, then its key, then its
    value. XTuner replaces `forward` and reads the attributes below.
    """

    def __init__(self, config):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = self.hidden_size // self.num_heads
        fused = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.wqkv = nn.Linear(self.hidden_size, fused, bias=config.bias)
        self.wo = nn.Linear(self.hidden_size, self.hidden_size, bias=config.bias)
        self.rotary_emb = rotary_embedding(config, self.head_dim)

    def split(self, fused):
        """(batch, tokens, fused) to query, key, value, each (batch, heads, tokens, head_dim)."""
        batch, tokens, _ = fused.shape
        shape = (batch, tokens, self.num_key_value_heads, -1, self.head_dim)
        fused = fused.view(shape)
        query = fused[..., :-2, :].reshape(batch, tokens, self.num_heads, self.head_dim)
        key, value = fused[..., -2, :], fused[..., -1, :]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
    ):
        """Attend from hidden_states (batch, tokens, hidden) to the past and to themselves.

        `attention_mask` (batch, 1, tokens, past + tokens) is added to the scores. `past_key_value` is None or (keys,
        values), each (batch, kv_heads, past, head_dim). Returns (output, attention weights or None, new (keys, values)
        or None).
        """
        batch, tokens, _ = hidden_states.shape
        query, key, value = self.split(self.wqkv(hidden_states))
        past = 0 if past_key_value is None else past_key_value[0].shape[-2]
        cos, sin = self.rotary_emb(value, seq_len=past + tokens)
        query = rotate(query, cos, sin, position_ids)
        key = rotate(key, cos, sin, position_ids)
        if past_key_value is not None:
            key = torch.cat((past_key_value[0], key), dim=2)
            value = torch.cat((past_key_value[1], value), dim=2)
        present = (key, value) if use_cache else None
        key = key.repeat_interleave(self.num_key_value_groups, dim=1)
        value = value.repeat_interleave(self.num_key_value_groups, dim=1)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, self.hidden_size)
        return self.wo(mixed), weights if output_attentions else None, present


def rotary_embedding(config, head_dim):
    """The rotary embedding of a configuration."""
    sizes = (head_dim, config.max_position_embeddings, config.rope_theta)
    if config.rope_scaling is None:
        return InternLM2RotaryEmbedding(*sizes)
    factor = config.rope_scaling["factor"]
    return InternLM2DynamicNTKScalingRotaryEmbedding(*sizes, factor=factor)


class InternLM2DecoderLayer(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, config):
        super().__init__()
        self.attention = InternLM2Attention(config)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
    ):
        """Return the new hidden states, the attention weights or None, the new cache or None."""
        mixed, weights, present = self.attention(
            self.attention_norm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            output_attentions=output_attentions,
            use_cache=use_cache,
        )
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.feed_forward(self.ffn_norm(hidden_states))
        return hidden_states, weights, present


class InternLM2PreTrainedModel(PreTrainedModel):
    """What transformers needs to load, shard and checkpoint the models below."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = "past_key_values"
    # The cache is a tuple of (key, value) pairs.
    _supports_cache_class = False

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


def additive_mask(attention_mask, like, past):
    """A causal mask with padding, to be added to the scores.

    `attention_mask` is None or (batch, past + tokens), 1 for tokens that are attended to; `like` is (batch, tokens,
    hidden). Returns (batch, 1, tokens, past + tokens): 0 where attended to, else the lowest finite number, so that a
    row of padding alone gives no NaN.
    """
    batch, tokens, _ = like.shape
    keys = torch.arange(past + tokens, device=like.device)
    seen = keys <= keys[past:, None]
    seen = seen.expand(batch, 1, tokens, past + tokens)
    if attention_mask is not None:
        seen = seen & attention_mask.to(like.device).bool()[:, None, None, :]
    mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(~seen, torch.finfo(like.dtype).min)


def default(value, otherwise):
    return otherwise if value is None else value


class InternLM2Model(InternLM2PreTrainedModel):
    """The decoder without its output layer."""

    def __init__(self, config):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.tok_embeddings

    def set_input_embeddings(self, value):
        self.tok_embeddings = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Run the decoder on either `input_ids` (batch, tokens) or `inputs_embeds` (batch, tokens, hidden).

        `attention_mask` is (batch, past + tokens), 1 for tokens that are attended to; `position_ids` is (batch,
        tokens), by default consecutive, padding included. Returns hidden states (batch, tokens, hidden) and, if asked
        for, the cache, all hidden states and all attention weights. Raises ValueError unless exactly one of the inputs
        is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        use_cache = default(use_cache, self.config.use_cache)
        output_attentions = default(output_attentions, self.config.output_attentions)
        output_hidden_states = default(output_hidden_states, self.config.output_hidden_states)
        return_dict = default(return_dict, self.config.use_return_dict)
        checkpointing = self.gradient_checkpointing and self.training
        # A layer that runs twice would grow the cache twice.
        use_cache = use_cache and not checkpointing

        hidden_states = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        pasts = past_key_values or [None] * len(self.layers)
        past = 0 if pasts[0] is None else pasts[0][0].shape[2]
        if position_ids is None:
            end = past + hidden_states.shape[1]
            position_ids = torch.arange(past, end, device=hidden_states.device)[None]
        mask = additive_mask(attention_mask, hidden_states, past)

        every_state, every_weight, presents = [hidden_states], [], []
        for layer, layer_past in zip(self.layers, pasts):
            inputs = (hidden_states, mask, position_ids, layer_past, output_attentions, use_cache)
            if checkpointing:
                outputs = self._gradient_checkpointing_func(layer.__call__, *inputs)
            else:
                outputs = layer(*inputs)
            hidden_states, weights, present = outputs
            every_state.append(hidden_states)
            every_weight.append(weights)
            presents.append(present)
        hidden_states = every_state[-1] = self.norm(hidden_states)

        result = BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=tuple(presents) if use_cache else None,
            hidden_states=tuple(every_state) if output_hidden_states else None,
            attentions=tuple(every_weight) if output_attentions else None,
        )
        return result if return_dict else result.to_tuple()


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """The decoder with a linear layer to the vocabulary."""

    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.tok_embeddings

    def set_input_embeddings(self, value):
        self.model.tok_embeddings = value

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, new_embeddings):
        self.output = new_embeddings

    def get_decoder(self):
        return self.model

    def set_decoder(self, decoder):
        self.model = decoder

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Return logits (batch, tokens, vocabulary) in float32 and, with labels, the loss.

        `labels` (batch, tokens) are aligned with the inputs: the logits of token t - 1 predict token t, and -100 is
        ignored. The loss is the mean cross-entropy in nats per token. The other arguments, and the ValueError, are
        those of InternLM2Model.
        """
        return_dict = default(return_dict, self.config.use_return_dict)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.output(outputs.last_hidden_state).float()
        loss = None
        if labels is not None:
            targets = labels[:, 1:].reshape(-1).to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if return_dict else result.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        position_ids=None,
        use_cache=None,
        **kwargs,
    ):
        """The arguments of the next forward call, without the tokens that are in the cache."""
        if past_key_values is not None:
            past = past_key_values[0][0].shape[2]
            # After inputs_embeds the ids are shorter than the cache, and one of them is new.
            unseen = input_ids.shape[1] - past if input_ids.shape[1] > past else 1
            input_ids = input_ids[:, -unseen:]
        if attention_mask is not None and position_ids is None:
            # Left padding does not shift the positions of the text.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            if past_key_values is not None:
                position_ids = position_ids[:, -input_ids.shape[1] :]
        if inputs_embeds is not None and past_key_values is None:
            inputs = {"inputs_embeds": inputs_embeds}
        else:
            inputs = {"input_ids": input_ids}
        return {
            **inputs,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        return tuple(
            tuple(state.index_select(0, beam_idx.to(state.device)) for state in layer) for layer in past_key_values
        )
