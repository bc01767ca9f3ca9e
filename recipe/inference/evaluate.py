"""Whether the tuned model is better: base and tuned on the conversations that were held out of training.

The loss is teacher-forced on the answers' tokens, with training's own template and labels, and counts every token
alike. Its intervals are Student's t over conversations, of a ratio (all loss by all tokens); that of the difference is
paired. The verdict is the difference's: better or worse where its 95 % interval excludes 0. Then some of the
conversations' last questions are answered, greedily. What the base did is kept in the cache, for the next recipe.

Of images, the base sees by the projector from which training began; where that was a random one, it sees nothing.
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
from recipe.inference import chat_model, loading, prompt, scores
from recipe.inference.loading import ModelFiles
from recipe.intake import dataset, split
from recipe.intake.images import IMAGE_TOKEN, image_folder
from recipe.planning import tokens as planning_tokens
from recipe.weights import llava
from recipe.xtuner import config, preset_facts

QUICK = 1e9  # bytes of weights that a CPU evaluates in seconds

Interval = Tuple[float, float]
Losses = Sequence[Tuple[float, int]]  # of each conversation: sum of its losses in nats, number of its tokens


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Tuple[float, Interval]:
    """All of `sums` by all of `counts`, with its 95 % interval: t over the pairs, of the linearized ratio.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 6.3, without the finite-population factor.
    """
    from scipy.special import stdtrit

    n, total = len(sums), sum(counts)
    mean = sum(sums) / total
    spread = sum((value - mean * count) ** 2 for value, count in zip(sums, counts))
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt(n / (n - 1) * spread) / total
    return mean, (mean - half, mean + half)


def compared(base: Losses, tuned: Losses) -> Dict[str, Any]:
    """The difference of two models' losses per token on the same conversations, and the verdict."""
    counts = [count for _, count in base]
    changes = [after - before for (before, _), (after, _) in zip(base, tuned)]
    loss, (low, high) = ratio(changes, counts)
    verdict = "better" if high < 0 else "worse" if low > 0 else "no difference"
    lower = sum(change < 0 for change in changes)
    return {"difference": {"loss": loss, "interval": [low, high], "lower_in": lower}, "verdict": verdict}


def is_quick(run: Run) -> bool:
    """Whether this machine evaluates the model in minutes: a GPU, or a small model."""
    if loading.weights_bytes(folder.folder(run)) < QUICK:
        return True
    import torch

    return torch.cuda.is_available()


def is_there(run: Run) -> bool:
    """Whether anything is held out."""
    return run.eval_dataset.is_file() and run.eval_dataset.stat().st_size > 0


def base_inputs(run: Run) -> Dict[str, Any]:
    """All that the base's results depend on, but for the precision."""
    settings = run.settings
    limit = settings.eval.max_new_tokens or settings.train.evaluation_max_new_tokens or chat_model.MAX_NEW_TOKENS
    cfg = config.effective(settings)
    return {
        "base": folder.fingerprint(folder.folder(run)),
        "held_out": run.eval_dataset,
        "settings": {**settings.eval.model_dump(), "max_new_tokens": limit},
        "template": dict(config.template(cfg) or {}),
        "max_length": cfg.max_length,
        **({**llava.inputs(run), "square": _square(cfg)} if preset_facts.has_images(settings) else {}),
        "code": source(Path(__file__).parent, Path(planning_tokens.__file__), Path(llava.__file__)),
        "versions": {name: versions()[name] for name in ("torch", "transformers", "xtuner")},
    }


def _square(cfg: Any) -> bool:
    """Whether training makes an image a square before CLIP sees it."""
    return bool(config.dataset(cfg).get("pad_image_to_square", False))


def measure(run: Run) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """(figures, samples): losses, scores and the verdict; and the answers side by side.

    Raises InputWrong if nothing is held out, HostLacks if the model does not fit.
    """
    if not is_there(run):
        raise InputWrong(
            f"Nothing is held out of training in {run.relative(run.folder)}, so there is nothing to measure on: set "
            f"data.eval_share=0.05 and train again (30 conversations give {split.MIN_HELD_OUT}), or name questions and "
            f"answers of your own: data.eval_files=data/exam.xlsx."
        )
    lines = list(dataset.lines(run.eval_dataset))
    for line in lines if preset_facts.has_images(run.settings) else ():
        image = image_folder(run) / line["image"]
        if digest(image) != line["sha256"]:
            raise InputWrong(
                f"{run.relative(image)} is not the image that was held out (it was changed or deleted). Restore it, "
                f"or train again."
            )
    asked = base_inputs(run)
    new = loading.find_model(run)
    try:
        kind = loading.choose_precision(folder.folder(run))
        base = _of_base(run, lines, asked, kind)
        after = _measured(run, new, lines, asked, kind)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise HostLacks(
            f"The GPU's memory was too small for this evaluation ({str(error)[:200]}). Use a smaller batch: "
            f"eval.batch_size=1; or stop other programs on the card."
        )
    conversations = [_said(line) for line in lines]
    figures = _figures(run, conversations, {"base": base, "tuned": after})
    figures.update(tuned=new.kind, precision=kind, measured_on=digest(run.eval_dataset))
    return figures, _samples(conversations, [line.get("image", "") for line in lines], base, after)


def _said(line: Dict[str, Any]) -> Any:
    """A line's conversation, without the sign of its image."""
    turns = line["conversation"]
    if "image" not in line:
        return turns
    return [{**turn, "input": turn["input"].replace(f"{IMAGE_TOKEN}\n", "")} for turn in turns]


def _of_base(run: Run, lines: Any, asked: Dict[str, Any], kind: str) -> Dict[str, Any]:
    """The base's losses and answers, from the cache if these were made of the same things."""
    key = key_of({**asked, "kind": kind})
    cache = Path(os.environ.get("RECIPE_CACHE") or run.root / ".cache") / "eval"
    path = cache / f"{key[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if len(kept["losses"]) == len(lines):
            return {**kept, "cached": True}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: recreated
    with tempfile.TemporaryDirectory() as place:
        vision = llava.prepare_untrained(run, Path(place)) if preset_facts.has_images(run.settings) else None
        made = _measured(run, loading.find_model(run, "base")._replace(vision=vision), lines, asked, kind)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(made, ensure_ascii=False))
    except OSError:
        pass  # a cache that cannot be written saves no time, and costs nothing else
    return made


def _measured(run: Run, of: ModelFiles, lines: Any, asked: Dict[str, Any], kind: str) -> Dict[str, Any]:
    """`losses` of every conversation and `answers` ([text, ended]) of those that `_answered` names."""
    chosen, has_images = asked["settings"], preset_facts.has_images(run.settings)
    template = prompt.template(run)
    with loading.explain_load_errors(run, of):
        model = chat_model.ChatModel(of.folder, template, of.adapter, kind, load_tokenizer(run.settings, of.folder))
    trained = None if preset_facts.kind(run.settings) == "pretrain" else model.template
    encoded = [
        planning_tokens.encoded(line["conversation"], trained, model.tokenizer, asked["max_length"], has_images)
        for line in lines
    ]
    questions = []
    for number in _answered(len(lines), chosen["answers"]):
        said = _said(lines[number])
        before, question, _ = _asking(said)
        turns = [(turn["input"], turn["output"]) for turn in before]
        questions.append((number, said[0].get("system", ""), turns, question))
    if of.vision:
        see = _seeing(run, model, of.vision, lines, asked["square"])
        losses = model.losses(encoded, chosen["batch_size"], see, visual_encoder.encoder_shape(run).patches)
        answers = []
        for number, *asking in questions:  # one by one: each has an image of its own
            model.image = see(number)
            answers.append(model.answer(*asking, limit=chosen["max_new_tokens"]))
        del see
    else:
        losses = model.losses([_blind(one) for one in encoded], chosen["batch_size"])
        prompts = [model.prompt(*asking) for _, *asking in questions]
        answers = model.answer_batch(prompts, chosen["max_new_tokens"], chosen["batch_size"])
    del model
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"losses": losses, "answers": answers}


def _seeing(
    run: Run, model: chat_model.ChatModel, vision: Tuple[Path, Path], lines: Any, square: bool
) -> Callable[[int], Any]:
    """Function that gives a held-out conversation's image as tokens, by its number."""
    tower, folder = llava.VisionTower(*vision, model.model.device, model.dtype), image_folder(run)
    return lambda number: tower.embed(folder / lines[number]["image"], square)


def _blind(encoded: Dict[str, List[int]]) -> Dict[str, List[int]]:
    """What remains for a model that sees nothing: the tokens without the sign of an image, which is below 0."""
    kept = [at for at, token in enumerate(encoded["input_ids"]) if token >= 0]
    return {name: [encoded[name][at] for at in kept] for name in ("input_ids", "labels")}


def _asking(conversation: Any) -> Tuple[Any, str, str]:
    """(turns before, question, the data's answer): of the last turn, of an Agent's the first, before any tool has
    answered; of a text without a question its first half is shown, and the model goes on.
    """
    tools = any(turn.get("system") for turn in conversation[1:])
    *before, last = conversation[:1] if tools else conversation
    if last["input"]:
        return before, last["input"], last["output"]
    half = max(1, len(last["output"]) // 2)
    return before, last["output"][:half], last["output"][half:]


def _answered(count: int, most: int) -> List[int]:
    """Numbers of the conversations that are answered: all, or `most` of them, evenly."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def _figures(run: Run, conversations: Any, measured: Dict[str, Any]) -> Dict[str, Any]:
    # What lost its whole answer at max_length has no token with loss.
    counted = [number for number, (_, tokens) in enumerate(measured["base"]["losses"]) if tokens]
    if len(counted) < split.MIN_HELD_OUT:
        raise InputWrong(
            f"{len(counted)} of {len(conversations)} held-out conversations have an answer within train.max_length: an "
            f"interval needs {split.MIN_HELD_OUT}."
        )
    losses = {name: [found["losses"][number] for number in counted] for name, found in measured.items()}
    counts = [tokens for _, tokens in losses["base"]]
    numbers = _answered(len(conversations), len(measured["base"]["answers"]))
    references = [_asking(conversations[number])[2] for number in numbers]
    known = _known(run, [text for found in measured.values() for text, _ in found["answers"]])
    models = {}
    for name, found in measured.items():
        loss, interval = ratio([value for value, _ in losses[name]], counts)
        if not math.isfinite(loss):
            raise RunFailed(
                f"The held-out loss of the {name} model is not a number: it overflows, or its files are damaged."
            )
        answers = [text for text, _ in found["answers"]]
        models[name] = {
            "loss": loss,
            "loss_interval": list(interval),
            "perplexity": math.exp(min(loss, 700)),
            **scores.overlap(answers, references),
            "repetition": sum(map(scores.is_repetitive, answers)) / len(answers),
            "copied": sum(text in known for text in answers) / len(answers),
            "never_stops": sum(not ended for _, ended in found["answers"]) / len(answers),
            "answer_length": sum(map(len, answers)) / len(answers),
        }
    figures = {
        "conversations": len(counted),
        "tokens": sum(counts),
        "answered": len(numbers),
        "reference_length": sum(map(len, references)) / len(references),
        "models": models,
        **compared(losses["base"], losses["tuned"]),
        "base_cached": bool(measured["base"].get("cached")),
    }
    return {**figures, "summary": summary(figures)}


def _known(run: Run, answers: Sequence[str]) -> Any:
    """Those of `answers` that stand in the training data as they are."""
    mine = set(filter(None, answers))
    return {
        turn["output"].strip()
        for conversation in dataset.conversations(run.dataset)
        for turn in conversation
        if turn["output"].strip() in mine
    }


def _samples(
    conversations: Any, images: Sequence[str], base: Dict[str, Any], after: Dict[str, Any]
) -> List[Dict[str, Any]]:
    numbers = _answered(len(conversations), len(base["answers"]))
    return [
        {
            **({"image": images[number]} if images[number] else {}),
            "question": _asking(conversations[number])[1],
            "reference": _asking(conversations[number])[2],
            "base": before[0],
            "tuned": new[0],
            "base_ended": before[1],
            "tuned_ended": new[1],
        }
        for number, before, new in zip(numbers, base["answers"], after["answers"])
    ]


def summary(figures: Dict[str, Any]) -> str:
    """The verdict in one line."""
    models, found = figures["models"], figures["difference"]
    low, high = found["interval"]
    return (
        f"{figures['verdict']}: held-out loss {models['base']['loss']:.3f} → {models['tuned']['loss']:.3f} nats a "
        f"token, difference {found['loss']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}), lower in "
        f"{found['lower_in']} of {figures['conversations']} conversations"
    )
