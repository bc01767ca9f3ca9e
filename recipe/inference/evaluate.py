"""Compares base and tuned model on the held-out conversations: losses, scores, answers and a verdict.

The loss is teacher-forced on the tokens of answers, with the template and labels of training; every token has the same
weight. Confidence intervals use Student's t over conversations for a ratio (total loss / total tokens); the difference
is paired. The verdict is better or worse if the 95 % interval of the difference excludes 0. The base model's results
are cached for other recipes. With images, the base model uses the projector that training started from, or none if
that was random.
"""

import gc
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

from recipe.base_model import folder, visual_encoder
from recipe.base_model.tokenizer import load as load_tokenizer
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.files import write_text
from recipe.core.hashing import digest, key_of, source
from recipe.core.host import versions
from recipe.core.run import Run
from recipe.core.settings import Settings
from recipe.core.translation import _, english, mark
from recipe.inference import chat_model, loading, prompt, scores
from recipe.inference.loading import ModelFiles
from recipe.intake import dataset, split
from recipe.intake.images import IMAGE_TOKEN, image_folder
from recipe.planning import tokens as planning_tokens
from recipe.weights import llava
from recipe.xtuner import config, preset_facts

FAST_STEP = Path(__file__).parents[1] / "training" / "fast"  # has the layers that answer on a GPU

QUICK_BYTES = 1e9  # models up to this size are evaluated on a CPU in seconds

Interval = Tuple[float, float]
Losses = Sequence[Tuple[float, int]]  # per conversation: (sum of losses in nats, number of tokens)


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Tuple[float, Interval]:
    """Return sum(sums) / sum(counts) and its 95 % interval (Student's t on the linearized ratio).

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 6.3, without the finite-population factor.
    """
    from scipy.special import stdtrit

    n, total = len(sums), sum(counts)
    mean = sum(sums) / total
    spread = sum((value - mean * count) ** 2 for value, count in zip(sums, counts))
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt(n / (n - 1) * spread) / total
    return mean, (mean - half, mean + half)


def compare(base: Losses, tuned: Losses) -> Dict[str, Any]:
    """Difference of two models' losses per token on the same conversations, and the verdict."""
    counts = [count for _loss, count in base]
    changes = [after[0] - before[0] for before, after in zip(base, tuned)]
    loss, (low, high) = ratio(changes, counts)
    verdict = mark("better") if high < 0 else mark("worse") if low > 0 else mark("no difference")
    lower = sum(change < 0 for change in changes)
    return {"difference": {"loss": loss, "interval": [low, high], "lower_in": lower}, "verdict": verdict}


def is_quick(run: Run) -> bool:
    """Whether this machine evaluates the model in minutes: a GPU, or a small model."""
    if loading.weights_bytes(folder.folder(run)) < QUICK_BYTES:
        return True
    import torch

    return torch.cuda.is_available()


def is_there(run: Run) -> bool:
    """Whether anything is held out."""
    return run.eval_dataset.is_file() and run.eval_dataset.stat().st_size > 0


def answer_limit(settings: Settings) -> int:
    """Tokens of an answer at most."""
    return settings.eval.max_new_tokens or settings.train.evaluation_max_new_tokens or chat_model.MAX_NEW_TOKENS


def base_inputs(run: Run) -> Dict[str, Any]:
    """All that the base's results depend on, but for the precision."""
    settings = run.settings
    cfg = config.effective(settings)
    return {
        "base": folder.fingerprint(folder.folder(run)),
        "held_out": run.eval_dataset,
        "settings": {**settings.eval.model_dump(), "max_new_tokens": answer_limit(settings)},
        "template": dict(config.template(cfg) or {}),
        "max_length": cfg.max_length,
        **({**llava.inputs(run), "square": _square(cfg)} if preset_facts.has_images(settings) else {}),
        "code": source(Path(__file__).parent, FAST_STEP, Path(planning_tokens.__file__), Path(llava.__file__)),
        "versions": {name: versions()[name] for name in ("torch", "transformers", "xtuner")},
    }


def _square(cfg: Any) -> bool:
    """Whether training pads images to squares."""
    return bool(config.dataset(cfg).get("pad_image_to_square", False))


def measure(run: Run) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Return (figures, samples): losses, scores and verdict; the answers side by side.

    Raises InputWrong if nothing is held out, HostLacks if the model does not fit.
    """
    if not is_there(run):
        raise InputWrong(
            _(
                "Nothing is held out of training in {folder}, so there is nothing to measure on. Set "
                "data.eval_share=0.05 and train again (30 conversations give {held_out}), or name your own "
                "questions and answers: data.eval_files=data/exam.xlsx.",
                folder=run.relative(run.folder),
                held_out=split.MIN_HELD_OUT,
            )
        )
    scores.packages()  # before both models answer in vain
    lines = list(dataset.lines(run.eval_dataset))
    for line in lines if preset_facts.has_images(run.settings) else ():
        image = image_folder(run) / line["image"]
        if digest(image) != line["sha256"]:
            raise InputWrong(
                _(
                    "{image} is not the image that was held out (it was changed or deleted). Restore it, or train "
                    "again.",
                    image=run.relative(image),
                )
            )
    asked = base_inputs(run)
    model = loading.find_model(run)
    try:
        precision = loading.choose_precision(folder.folder(run))
        base = _measure_base(run, lines, asked, precision)
        tuned = _measure_model(run, model, lines, asked, precision)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise HostLacks(
            _(
                "The GPU's memory was too small for this evaluation ({error}). Use a smaller batch: eval.batch_size=1; "
                "or stop other programs on the card.",
                error=str(error)[:200],
            )
        )
    conversations = [_without_image_token(line) for line in lines]
    figures = _figures(run, conversations, {"base": base, "tuned": tuned})
    figures.update(tuned=model.kind, precision=precision, measured_on=digest(run.eval_dataset))
    return figures, _samples(conversations, [line.get("image", "") for line in lines], base, tuned)


def _without_image_token(line: Dict[str, Any]) -> Any:
    """The conversation of a line, without its image token."""
    turns = line["conversation"]
    if "image" not in line:
        return turns
    return [{**turn, "input": turn["input"].replace(f"{IMAGE_TOKEN}\n", "")} for turn in turns]


def _measure_base(run: Run, lines: Any, asked: Dict[str, Any], precision: str) -> Dict[str, Any]:
    """The base model's losses and answers, from the cache if its inputs are unchanged."""
    key = key_of({**asked, "precision": precision})
    cache = Path(os.environ.get("RECIPE_CACHE") or run.root / ".cache") / "eval"
    path = cache / f"{key[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if len(kept["losses"]) == len(lines):
            return {**kept, "cached": True}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: recreated
    with tempfile.TemporaryDirectory() as scratch:
        vision = llava.prepare_untrained(run, Path(scratch)) if preset_facts.has_images(run.settings) else None
        files = loading.find_model(run, "base")._replace(vision=vision)
        results = _measure_model(run, files, lines, asked, precision)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(results, ensure_ascii=False))
    except OSError:
        pass  # an unwritable cache only costs time
    return results


def _measure_model(run: Run, files: ModelFiles, lines: Any, asked: Dict[str, Any], precision: str) -> Dict[str, Any]:
    """`losses` of every conversation, and `answers` ([text, ended]) to those chosen by `_sample_indices`."""
    chosen, has_images = asked["settings"], preset_facts.has_images(run.settings)
    template = prompt.template(run)
    with loading.explain_load_errors(run, files):
        tokenizer = load_tokenizer(run.settings, files.folder)
        model = chat_model.ChatModel(files.folder, template, files.adapter, precision, tokenizer)
    trained = None if preset_facts.kind(run.settings) == "pretrain" else model.template
    encoded = [
        planning_tokens.encoded(line["conversation"], trained, model.tokenizer, asked["max_length"], has_images)
        for line in lines
    ]
    questions = []
    for number in _sample_indices(len(lines), chosen["answers"]):
        conversation = _without_image_token(lines[number])
        before, question, _reference = _split_last_turn(conversation)
        turns = [(turn["input"], turn["output"]) for turn in before]
        questions.append((number, conversation[0].get("system", ""), turns, question))
    if files.vision:
        embed = _image_embedder(run, model, files.vision, lines, asked["square"])
        losses = model.losses(encoded, chosen["batch_size"], embed, visual_encoder.encoder_shape(run).patches)
        answers = []
        for number, system, turns, question in questions:  # one at a time: each has its own image
            model.image = embed(number)
            answers.append(model.answer(system, turns, question, limit=chosen["max_new_tokens"]))
        del embed
    else:
        losses = model.losses([_without_images(one) for one in encoded], chosen["batch_size"])
        prompts = [model.prompt(system, turns, question) for _number, system, turns, question in questions]
        answers = model.answer_batch(prompts, chosen["max_new_tokens"], chosen["batch_size"])
    del model
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"losses": losses, "answers": answers}


def _image_embedder(
    run: Run, model: chat_model.ChatModel, vision: Tuple[Path, Path], lines: Any, square: bool
) -> Callable[[int], Any]:
    """Return a function from a held-out conversation's index to the embeddings of its image."""
    tower, folder = llava.VisionTower(*vision, model.model.device, model.dtype), image_folder(run)
    return lambda number: tower.embed(folder / lines[number]["image"], square)


def _without_images(encoded: Dict[str, List[int]]) -> Dict[str, List[int]]:
    """The tokens without image tokens, which are negative; for models that read no images."""
    kept = [at for at, token in enumerate(encoded["input_ids"]) if token >= 0]
    return {name: [encoded[name][at] for at in kept] for name in ("input_ids", "labels")}


def _split_last_turn(conversation: Any) -> Tuple[Any, str, str]:
    """Return (earlier turns, question, reference answer).

    The last turn is asked; in conversations with tools the first one, which needs no tool result. A text without a
    question is split in half, for the model to continue.
    """
    tools = any(turn.get("system") for turn in conversation[1:])
    *before, last = conversation[:1] if tools else conversation
    if last["input"]:
        return before, last["input"], last["output"]
    half = max(1, len(last["output"]) // 2)
    return before, last["output"][:half], last["output"][half:]


def _sample_indices(count: int, most: int) -> List[int]:
    """Indices of the conversations to answer: all, or `most` of them, evenly spread."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def _figures(run: Run, conversations: Any, measured: Dict[str, Any]) -> Dict[str, Any]:
    # An answer cut off completely at max_length has no token with loss.
    counted = [number for number, (_loss, tokens) in enumerate(measured["base"]["losses"]) if tokens]
    if len(counted) < split.MIN_HELD_OUT:
        raise InputWrong(
            _(
                "{counted} of {conversations} held-out conversations have an answer within train.max_length, but an "
                "interval needs {needed}. Raise train.max_length or hold out more (data.eval_share).",
                counted=len(counted),
                conversations=len(conversations),
                needed=split.MIN_HELD_OUT,
            )
        )
    losses = {name: [found["losses"][number] for number in counted] for name, found in measured.items()}
    counts = [tokens for _loss, tokens in losses["base"]]
    numbers = _sample_indices(len(conversations), len(measured["base"]["answers"]))
    references = [_split_last_turn(conversations[number])[2] for number in numbers]
    known = _training_answers(run, [text for found in measured.values() for text, _ended in found["answers"]])
    models = {}
    for name, found in measured.items():
        loss, interval = ratio([value for value, _tokens in losses[name]], counts)
        if not math.isfinite(loss):
            raise RunFailed(
                _(
                    "The held-out loss of the {model} is not a number: it overflows, or its files are damaged.",
                    model=_("base model") if name == "base" else _("tuned model"),
                )
            )
        answers = [text for text, _ended in found["answers"]]
        models[name] = {
            "loss": loss,
            "loss_interval": list(interval),
            "perplexity": math.exp(min(loss, 700)),
            **scores.overlap(answers, references),
            "repetition": sum(map(scores.is_repetitive, answers)) / len(answers),
            "copied": sum(text in known for text in answers) / len(answers),
            "never_stops": sum(not ended for _text, ended in found["answers"]) / len(answers),
            "answer_length": sum(map(len, answers)) / len(answers),
        }
    figures = {
        "conversations": len(counted),
        "tokens": sum(counts),
        "answered": len(numbers),
        "reference_length": sum(map(len, references)) / len(references),
        "models": models,
        **compare(losses["base"], losses["tuned"]),
        "base_cached": bool(measured["base"].get("cached")),
    }
    with english():  # eval.json and run.json hold it; `stored` translates it
        return {**figures, "summary": summary(figures)}


def _training_answers(run: Run, answers: Sequence[str]) -> Any:
    """Those of `answers` that occur verbatim in the training data."""
    candidates = set(filter(None, answers))
    return {
        turn["output"].strip()
        for conversation in dataset.conversations(run.dataset)
        for turn in conversation
        if turn["output"].strip() in candidates
    }


def _samples(
    conversations: Any, images: Sequence[str], base: Dict[str, Any], tuned: Dict[str, Any]
) -> List[Dict[str, Any]]:
    numbers = _sample_indices(len(conversations), len(base["answers"]))
    return [
        {
            **({"image": images[number]} if images[number] else {}),
            "question": _split_last_turn(conversations[number])[1],
            "reference": _split_last_turn(conversations[number])[2],
            "base": old[0],
            "tuned": new[0],
            "base_ended": old[1],
            "tuned_ended": new[1],
        }
        for number, old, new in zip(numbers, base["answers"], tuned["answers"])
    ]


def summary(figures: Dict[str, Any]) -> str:
    """The verdict in one line."""
    models, found = figures["models"], figures["difference"]
    low, high = found["interval"]
    return _(
        "{verdict}: held-out loss {base:.3f} → {tuned:.3f} nats per token, difference {difference:+.4f} (95 % interval "
        "{low:+.4f} to {high:+.4f}), lower in {lower} of {conversations} conversations",
        verdict=_(figures["verdict"]),
        base=models["base"]["loss"],
        tuned=models["tuned"]["loss"],
        difference=found["loss"],
        low=low,
        high=high,
        lower=found["lower_in"],
        conversations=figures["conversations"],
    )
