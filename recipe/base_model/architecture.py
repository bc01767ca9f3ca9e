"""What our InternLM2 code expects of a model folder: the keys of its config.json, the names and shapes of its weights.

Works on parsed JSON alone, so that a hub's folder can be checked before its weights are downloaded.
"""

import functools
import operator
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from recipe.core.tensor_files import listing
from recipe.core.translation import _

MODEL_TYPE, CLASS = "internlm2", "InternLM2ForCausalLM"
# How transformers finds our code in a model folder.
AUTO_MAP = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": f"modeling_internlm2.{CLASS}",
    "AutoModelForCausalLM": f"modeling_internlm2.{CLASS}",
}
TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
CODE = ("configuration_internlm2", "modeling_internlm2", "tokenization_internlm2")

# Keys that our InternLM2Config reads.
SUPPORTED = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("bias", "rope_theta", "rope_scaling", "rope_parameters", "pad_token_id", "bos_token_id", "eos_token_id"),
    "tie_word_embeddings",
}
# Keys that do not change what the model computes.
IGNORED = {
    *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("attn_implementation", "_attn_implementation", "_flash_attn_2_enabled", "pretraining_tp", "return_dict"),
    *("output_attentions", "output_hidden_states", "use_return_dict", "gradient_checkpointing"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task", "name_or_path"),
    *("tokenizer_class", "prefix", "decoder_start_token_id", "sep_token_id", "unk_token_id", "seq_length", "seq_len"),
    *("use_flash_attn", "use_flash_attention_2", "use_bfloat16", "torchscript", "chunk_size_feed_forward"),
    # Sampling, which newer folders have in generation_config.json.
    *("max_length", "min_length", "do_sample", "num_beams", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "num_return_sequences", "diversity_penalty", "num_beam_groups"),
}
# Keys whose defaults differ between the folder's own code and ours.
REQUIRED = ("bias", "hidden_act", "max_position_embeddings", "num_key_value_heads", "rms_norm_eps", "rope_theta")
ROPE_TYPES = (None, "default", "dynamic")


def is_internlm2(config: Mapping[str, Any]) -> bool:
    """Whether our code loads the model of this config.json."""
    return config.get("model_type") == MODEL_TYPE or CLASS in (config.get("architectures") or ())


def rope(config: Mapping[str, Any]) -> Tuple[Optional[float], Dict[str, Any]]:
    """(theta or None, scaling) of a config's rotary embedding; newer transformers write both as rope_parameters."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    return scaling.pop("rope_theta", config.get("rope_theta")), scaling


def rope_type(scaling: Mapping[str, Any]) -> Optional[str]:
    """The type of a rope scaling, which newer transformers call rope_type."""
    return scaling.get("type", scaling.get("rope_type"))


def unsupported_keys(config: Mapping[str, Any]) -> List[str]:
    """What our code does not support in a config.json, and what it requires and does not find, one line each."""
    wrong = []
    for name in sorted(set(config) - SUPPORTED - IGNORED):
        if config[name] not in (None, False, 0, 0.0, "", [], {}) and not _is_implied(name, config):
            wrong.append(f"{name} = {_short(config[name])}")
    theta, scaling = rope(config)
    stated = {*config, *([] if theta is None else ["rope_theta"])}
    wrong += [_("{name} is missing", name=name) for name in REQUIRED if name not in stated]
    kind, factor = rope_type(scaling), scaling.get("factor", 1)
    if kind not in ROPE_TYPES:
        wrong.append(_("rope_scaling of type {type!r} (our code supports dynamic, or none)", type=kind))
    elif kind == "dynamic" and not (isinstance(factor, (int, float)) and factor >= 1):
        wrong.append(_("rope_scaling with factor {factor} (it must be 1 or more)", factor=_short(factor)))
    return wrong


def _is_implied(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a key's value follows from other keys."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if name == "head_dim" and isinstance(hidden, int) and isinstance(heads, int) and heads:
        return bool(config[name] == hidden // heads)
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"


def expected(config: Mapping[str, Any]) -> Dict[str, Tuple[int, ...]]:
    """Name → shape of every weight that our code expects. Raises KeyError, TypeError, ZeroDivisionError, ValueError."""
    hidden, inner, vocabulary = (int(config[name]) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    fused = (heads + 2 * groups) * (hidden // heads)
    shapes: Dict[str, Tuple[int, ...]] = {"model.tok_embeddings.weight": (vocabulary, hidden)}
    for layer in range(int(config["num_hidden_layers"])):
        here = f"model.layers.{layer}"
        shapes[f"{here}.attention.wqkv.weight"] = (fused, hidden)
        shapes[f"{here}.attention.wo.weight"] = (hidden, hidden)
        if config.get("bias"):
            shapes[f"{here}.attention.wqkv.bias"], shapes[f"{here}.attention.wo.bias"] = (fused,), (hidden,)
        shapes[f"{here}.feed_forward.w1.weight"] = shapes[f"{here}.feed_forward.w3.weight"] = (inner, hidden)
        shapes[f"{here}.feed_forward.w2.weight"] = (hidden, inner)
        shapes[f"{here}.attention_norm.weight"] = shapes[f"{here}.ffn_norm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["output.weight"] = (vocabulary, hidden)
    return shapes


def mismatches(
    config: Mapping[str, Any], found: Mapping[str, Optional[Sequence[int]]], total_size: Optional[int] = None
) -> List[str]:
    """Where weights differ from those that our code expects, one line each. `found`: name → shape, None if unknown;
    `total_size`: bytes of all weights, from PyTorch's index.
    """
    try:
        wanted = expected(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        return [_("config.json does not state the model's sizes ({error})", error=reason)]
    optional = {"output.weight"} if config.get("tie_word_embeddings") else set()
    extra = [name for name in found if name not in wanted and name not in optional and not name.endswith("inv_freq")]
    missing = [name for name in wanted if name not in found]
    wrong = [_("missing {weights}", weights=listing(missing))] if missing else []
    wrong += [_("unknown {weights}", weights=listing(extra))] if extra else []
    for name, shape in sorted(found.items()):
        if shape is not None and name in wanted and tuple(shape) != wanted[name]:
            wrong.append(
                _(
                    "{name} is {found}, config.json says {expected}",
                    name=name,
                    found=list(shape),
                    expected=list(wanted[name]),
                )
            )
    numbers = sum(functools.reduce(operator.mul, shape) for shape in wanted.values())
    if not wrong and total_size and set(found) == set(wanted) and total_size not in (2 * numbers, 4 * numbers):
        wrong.append(
            _(
                "the weights are {size:,} bytes, and {numbers:,} numbers are expected",
                size=total_size,
                numbers=numbers,
            )
        )
    return wrong
