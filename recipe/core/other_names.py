"""Names of settings in LLaMA-Factory, transformers and TRL, axolotl, ms-swift and Unsloth, and ours for the same thing.

Only names with one meaning that is also ours: what has no counterpart here is not guessed. Sources: LLaMA-Factory's
hparams, transformers' TrainingArguments, TRL's SFTConfig, axolotl's config reference, ms-swift's command-line
parameters, Unsloth's FastLanguageModel. Python's standard library alone.
"""

from typing import Dict, Sequence

from recipe.core.suggestions import closest
from recipe.core.translation import _, listed

OURS: Dict[str, str] = {
    **dict.fromkeys(("learning_rate",), "train.lr"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "micro_batch_size", "train_batch_size", "per_gpu_train_batch_size",
         "per_device_batch_size"),
        "train.batch_size",
    ),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "grad_accum_steps"), "train.accumulative_counts"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs", "n_epochs", "epoch"), "train.max_epochs"),
    **dict.fromkeys(
        ("cutoff_len", "max_seq_length", "max_seq_len", "sequence_len", "model_max_length", "block_size",
         "sequence_length", "max_source_length"),
        "train.max_length",
    ),
    **dict.fromkeys(("packing", "sample_packing", "neat_packing", "pack"), "train.pack_to_max_length"),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing"), "train.checkpointing"),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping", "clip_grad", "max_gradient_norm"), "train.max_norm"),
    **dict.fromkeys(("warmup", "lr_warmup_ratio", "warmup_fraction", "lr_warmup_fraction"), "train.warmup_ratio"),
    **dict.fromkeys(("random_seed", "data_seed", "random_state"), "train.seed"),
    **dict.fromkeys(("save_step", "checkpoint_interval"), "train.save_steps"),
    **dict.fromkeys(("eval_steps", "evaluation_steps"), "train.evaluation_freq"),
    **dict.fromkeys(("logging_steps", "logging_interval"), "train.log_interval"),
    **dict.fromkeys(("finetuning_type", "train_type", "tuner_type", "sft_type"), "train.method"),
    **dict.fromkeys(("torch_dtype", "bnb_4bit_compute_dtype", "bf16", "fp16", "compute_dtype"), "train.dtype"),
    **dict.fromkeys(("chat_template", "template_type", "prompt_template"), "train.template"),
    **dict.fromkeys(("report_to", "use_wandb", "use_swanlab", "logger"), "train.loggers"),
    **dict.fromkeys(("preprocessing_num_workers", "dataset_num_proc", "dataset_processes", "num_proc"),
    "train.map_num_proc"),
    **dict.fromkeys(("deepspeed_config", "ds_config"), "train.deepspeed"),
    **dict.fromkeys(("lora_rank", "lora_r", "rank"), "lora.r"),
    **dict.fromkeys(("alpha",), "lora.lora_alpha"),
    **dict.fromkeys(("dropout",), "lora.lora_dropout"),
    **dict.fromkeys(
        ("path", "dataset", "datasets", "dataset_path", "dataset_name", "train_file", "train_files", "data_path",
        "data_files", "file",
         "dataset_dir", "train_dataset", "custom_train_dataset_path"),
        "data.files",
    ),
    **dict.fromkeys(("val_dataset", "eval_dataset", "test_datasets", "validation_file", "eval_file", "val_file"),
    "data.eval_files"),
    **dict.fromkeys(("val_size", "val_set_size", "split_dataset_ratio", "test_size", "eval_ratio", "val_ratio"),
    "data.eval_share"),
    **dict.fromkeys(("default_system", "system_prompt", "system_message"), "data.system"),
    **dict.fromkeys(("sheet_name", "sheets"), "data.sheet"),
    **dict.fromkeys(("remove_duplicates", "deduplicate"), "data.dedupe"),
    **dict.fromkeys(
        ("model_name_or_path", "base_model", "model_id_or_path", "model_name", "model_id",
        "pretrained_model_name_or_path"),
        "model.id",
    ),
    **dict.fromkeys(("model_path", "model_dir", "local_path", "local_repo_path"), "model.path"),
    **dict.fromkeys(("model_revision", "revision_model"), "model.revision"),
    **dict.fromkeys(("tokenizer_name_or_path", "tokenizer_path", "tokenizer_name"), "model.tokenizer"),
    **dict.fromkeys(("vision_tower", "image_encoder"), "model.visual_encoder"),
    **dict.fromkeys(("export_size", "shard_size"), "merge.max_shard_size"),
    **dict.fromkeys(("save_safetensors", "safetensors"), "merge.safe_serialization"),
    **dict.fromkeys(("hub_model_id", "push_to_hub_model_id"), "export.repo"),
    **dict.fromkeys(("quantization_method", "quantization"), "export.quantize"),
    **dict.fromkeys(("num_gpus", "n_gpu", "nproc_per_node", "n_gpus"), "gpus"),
    **dict.fromkeys(("nnodes", "num_nodes", "num_machines"), "nodes"),
}  # fmt: skip

# Known names without a counterpart: the closest of ours would be another thing.
NONE_OF_OURS = frozenset(
    [
        "lora_target",
        "lora_target_modules",
        "target_modules",
        "lora_target_linear",
        "modules_to_save",
        "lora_modules_to_save",
        "lr_scheduler_type",
        "lr_scheduler",
        "optim",
        "optimizer",
        "load_in_4bit",
        "load_in_8bit",
        "quantization_bit",
        "output_dir",
        "overwrite_output_dir",
        "do_train",
        "do_eval",
        "stage",
        "fsdp",
        "fsdp_config",
        "overwrite_cache",
        "plot_loss",
        "neftune_noise_alpha",
        "max_steps",
        "max_samples",
        "use_rslora",
        "use_dora",
        "flash_attn",
        "flash_attention",
        "attn_impl",
        "ddp_timeout",
        "adapter",
        "warmup_steps",
        "eval_strategy",
        "evaluation_strategy",
        "save_strategy",
        "load_best_model_at_end",
        "hub_token",
        "trust_remote_code",
        "streaming",
        "group_by_length",
        "dataloader_num_workers",
        "adam_beta1",
        "adam_beta2",
        "min_lr",
        "train_on_inputs",
        "completion_only_loss",
        "assistant_only_loss",
        "loss_scale",
        "agent_template",
        "resume_from_checkpoint",
        "bias",
        "peft_type",
    ]
)


def hint(key: str, known: Sequence[str]) -> str:
    """What to say of an unknown key that another trainer has; "" if it is not one of theirs."""
    found = ours(key, known)
    if found:
        return _("did you mean {key}", key=found)
    if key.rpartition(".")[2].replace("-", "_").lower() in NONE_OF_OURS:
        return _("it is another trainer's, and has no counterpart here")
    return ""


def unknown_key(key: str, known: Sequence[str], settings: Sequence[str]) -> str:
    """What to say of a key that is none of `known`, which are `settings` and perhaps their tables."""
    other, close = hint(key, settings), closest(key, known, cutoff=0.5)
    guess = _("did you mean {key}", key=close) if close else _("known are {keys}", keys=listed(known))
    return _("unknown key; {hint}", hint=other or guess)


def ours(key: str, known: Sequence[str]) -> str:
    """Our setting for a dotted key of another trainer, or for one of ours without its table; "" if there is none."""
    name = key.rpartition(".")[2].replace("-", "_").lower()
    if name in OURS:
        return OURS[name]
    alike = [one for one in known if one.rpartition(".")[2] == name]
    return alike[0] if len(alike) == 1 and alike[0] != key else ""
