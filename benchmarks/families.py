"""The families whose code transformers carries, each as a tiny random model through the whole recipe: `just families`.

For each: data, plan, config, training of a few updates, adapter or whole model, merge, evaluation and one question, as
its preset of XTuner has it (template, LoRA's targets, kind of data), on the CPU. Words behind the command choose some.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
# What is run: name → (architecture, preset, overrides in addition to OVERRIDES)
RUNS = {
    "llama-lora": ("llama", "llama2_7b_chat_qlora_medical_e1", ["train.method=lora"]),
    "llama-full": ("llama", "llama2_7b_full_wizardlm_e1", []),
    "llama-pretrain": ("llama", "llama2_7b_qlora_oasst1_e3", ["train.method=full", "data.kind=pretrain"]),
    "vicuna-template": ("llama", "llama_7b_qlora_alpaca_e3", ["train.method=lora", "train.template=vicuna"]),
    "alpaca-enzh-oasst1": ("llama", "llama2_7b_qlora_alpaca_enzh_oasst1_e3", ["train.method=lora"]),
    "agent": ("llama", "llama2_7b_qlora_msagent_react_e3_gpu8", ["train.method=lora", "train.max_length=1024"]),
    "moss": ("llama", "llama2_7b_qlora_moss_sft_all_e1", ["train.method=lora"]),
    "deepseek-coder": ("llama", "deepseek_coder_6_7b_base_qlora_code_alpaca_e3", ["train.method=lora"]),
    "yi": ("llama", "yi_6b_qlora_alpaca_enzh_e3", ["train.method=lora"]),
    "zephyr": ("mistral", "zephyr_7b_beta_qlora_alpaca_e3", ["train.method=lora"]),
    "mistral-pretrain": ("mistral", "mistral_7b_qlora_skypile_pretrain_e1", ["train.method=lora"]),
    "mistral-full": ("mistral", "mistral_7b_qlora_skypile_pretrain_e1", ["train.method=full"]),
    "mixtral-lora": ("mixtral", "mixtral_8x7b_instruct_qlora_oasst1_e3", ["train.method=lora"]),
    "mixtral-full": ("mixtral", "mixtral_8x7b_instruct_full_oasst1_e3", []),
    "starcoder": ("gpt_bigcode", "starcoder_qlora_stack_exchange_example", ["train.method=lora"]),
    "llava-projector": ("llama", "llava_vicuna_7b_v15_clip_vit_large_p14_336_e1_gpu8_pretrain", []),
    "llava-lora": (
        "llama", "llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune", ["train.method=lora"]
    ),
    "llava-full": ("llama", "llava_vicuna_7b_v15_clip_vit_large_p14_336_e1_gpu8_finetune", []),
}  # fmt: skip
COLOURS = {"红色": "red", "绿色": "green", "蓝色": "blue", "黄色": "yellow", "白色": "white", "黑色": "black"}
OVERRIDES = [
    "train.dtype=fp32", "train.max_length=256", "train.batch_size=1", "train.accumulative_counts=1",
    "train.max_epochs=2", "train.lr=1e-3", "train.warmup_ratio=0.1", "train.map_num_proc=1", "train.seed=0",
    "train.evaluation_freq=0.5", "train.save_steps=0.5", "train.evaluation_max_new_tokens=8", "train.log_interval=1",
    "data.eval_share=0.1", "eval.answers=4", 'train.evaluation_inputs=["压力很大"]', "merge.max_shard_size=100KB",
]  # fmt: skip


def make(place, kind, texts):
    """A model folder of random weights, as transformers saves it: float16, safetensors, the family's own tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    classes = {
        "llama": (transformers.LlamaConfig, {}),
        "mistral": (transformers.MistralConfig, {"num_key_value_heads": 2, "sliding_window": 128}),
        "mixtral": (transformers.MixtralConfig, {"num_key_value_heads": 2, "num_local_experts": 4}),
        "gpt_bigcode": (transformers.GPTBigCodeConfig, {"attention_softmax_in_fp32": True}),
    }
    config_class, more = classes[kind]
    place.mkdir(parents=True)
    tokenizer = (_bytes if kind == "gpt_bigcode" else _pieces)(place, texts)
    size = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 160} if kind == "gpt_bigcode" else SIZE
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    length = "n_positions" if kind == "gpt_bigcode" else "max_position_embeddings"
    config = config_class(vocab_size=len(tokenizer), **{length: 2048}, **size, **more, **ends)
    model = transformers.AutoModelForCausalLM.from_config(config).half()
    model.save_pretrained(str(place), max_shard_size="200KB", safe_serialization=True)
    tokenizer.save_pretrained(str(place))


def _pieces(place, texts):
    """Llama's tokenizer: sentencepiece, with bytes for what it does not know."""
    import sentencepiece
    from transformers import LlamaTokenizer

    path = place / "tokenizer.model"
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts), model_writer=stream, model_type="bpe", vocab_size=1200, byte_fallback=True,
            character_coverage=0.9995, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        )  # fmt: skip
    return LlamaTokenizer(str(path), legacy=False)


def _bytes(place, texts):
    """StarCoder's: BPE over bytes."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=1200, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(place))
    return GPT2TokenizerFast(str(place / "vocab.json"), str(place / "merges.txt"))


def data_of(place, kind):
    """Files for a kind of data, made of the sample workbook: a folder of texts, or conversations with one tool."""
    from recipe.intake import dataset

    rows = [turns[0] for turns in dataset.sample(ROOT / "data/workplace.xlsx")]
    if kind == "pretrain":
        (place / "texts" / "inner").mkdir(parents=True)
        for number in range(0, len(rows), 4):
            folder = place / "texts" / ("inner" if number % 8 else ".")
            text = "\n\n".join(f"{row['input']}\n{row['output']}" for row in rows[number : number + 4])
            (folder / f"{number}.{'md' if number % 3 else 'txt'}").write_text(text, encoding="utf-8")
        return str(place / "texts")
    if kind == "image":
        return str(pictures(place))
    if kind != "agent":
        return str(ROOT / "data/workplace.xlsx")
    path = place / "tools.jsonl"
    call = '<|startofthink|>{"api_name": "search", "parameters": {"q": "压力"}}<|endofthink|>'
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            said = [("system", '{"name": "search", "description": "查"}'), ("user", row["input"]),
                    ("assistant", f'{call}<|startofexec|>{{"found": 1}}<|endofexec|>{row["output"]}')]  # fmt: skip
            one = {"conversations": [{"from": who, "value": what} for who, what in said]}
            stream.write(json.dumps(one, ensure_ascii=False) + "\n")
    return str(path)


def pictures(place, times=4):
    """A CSV of image, q and a in `place`, `times` questions on each of six images of one colour, in a folder below."""
    from PIL import Image

    (place / "seen").mkdir(parents=True)
    lines = ["image,q,a"]
    for number in range(times):
        for name, colour in COLOURS.items():
            path = place / "seen" / f"{colour}.png"
            if not path.exists():
                Image.new("RGB", (60 + 2 * len(colour), 40), colour).save(str(path))
            lines.append(f"seen/{colour}.png,{number + 1}：这张图片是什么颜色的？,这张图片是{name}的。")
    (place / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place / "pairs.csv"


def call(words):
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    done = subprocess.run(
        [sys.executable, "-m", "recipe", *words], cwd=str(ROOT), env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "could not be written" not in done.stderr, done.stderr  # the report
    return done.stdout


def go(name, place, evaluate=True):
    """Run one of RUNS; what it came to, from run.json."""
    from recipe.intake import dataset
    from recipe.xtuner import preset_facts

    architecture, base, more = RUNS[name]
    texts = [text for turns in dataset.sample(ROOT / "data/workplace.xlsx") for turn in turns for text in turn.values()]
    model = place / architecture
    if not model.exists():
        make(model, architecture, texts)
    kind = next((word[10:] for word in more if word.startswith("data.kind=")), preset_facts.facts(base).kind)
    folder = place / name
    folder.mkdir()
    recipe = folder / f"{name}.toml"
    recipe.write_text(f'base = "{base}"\n[data]\nfiles = {json.dumps([data_of(folder, kind)])}\n', encoding="utf-8")
    words = [
        str(recipe),
        f"model.path={model}",
        "--output",
        str(folder),
        *OVERRIDES,
        *more,
    ]  # the last of a name counts
    asked, first = [], name == "llava-projector"
    if kind == "image":
        words += ["model.visual_encoder=tiny", "data.eval_share=0"]
        asked, evaluate = [f"image={folder / 'seen' / 'red.png'}"], False
        if not first:
            before = place / "llava-projector" / "llava-projector"
            words.append(f"model.pretrained_pth={before if before.is_dir() else go(before.name, place)['folder']}")
    began = time.time()
    call(["train" if first else "merge", *words, "--force"])
    said = call(["chat", str(recipe), "压力很大，怎么办？", *asked, "--output", str(folder)])
    stages = json.loads((folder / name / "run.json").read_text(encoding="utf-8"))["stages"]
    figures = {stage: entry["figures"] for stage, entry in stages.items()}
    losses = []
    if evaluate:
        call(["eval", str(recipe), "--output", str(folder)])
        found = json.loads((folder / name / "eval.json").read_text(encoding="utf-8"))
        losses = [found["models"][which]["loss"] for which in ("base", "tuned")]
    return {
        "architecture": architecture, "kind": kind, "method": figures["config"]["method"],
        "updates": figures["train"]["updates"], "planned": figures["plan"]["updates"],
        **({} if first else {
            "changed": figures["merge"]["share_changed"], "tensors": figures["merge"]["tensors"],
            "tensors_changed": figures["merge"]["tensors_changed"],
            "arrived": figures["merge"]["weights_check"]["arrived"],
            "stops": figures["merge"]["load_check"]["stops"],
        }),
        "loss": losses,
        "loss_first": figures["train"]["loss_first"], "loss_last": figures["train"]["loss_last"],
        "said": said, "seconds": round(time.time() - began), "folder": folder / name,
    }  # fmt: skip


def main(chosen):
    with tempfile.TemporaryDirectory() as place:
        for name in chosen or RUNS:
            found = go(name, Path(place))
            changed = "no language model"
            if "tensors" in found:
                changed = f"{found['tensors_changed']:3} of {found['tensors']:3} tensors"
            # Of so few images none is held out
            what, (before, after) = ("held-out ", found["loss"]) if found["loss"] else (
                "", (found["loss_first"], found["loss_last"]))  # fmt: skip
            print(
                f"{name:20} {found['architecture']:12} {found['method']:9} {found['kind']:12} {found['updates']:3} "
                f"updates, {changed} changed, {what}loss {before:.3f} → {after:.3f}, {found['seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
