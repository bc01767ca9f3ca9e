"""A loaded model with its tokenizer, chat template and end tokens: what chat, the samples and the evaluation ask.

On a GPU in 16 bits where that fits into the memory that is free, else in 4 (NF4); on the CPU in fp32, in bf16 where
the memory is too small for that.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from recipe.base_model import model_code
from recipe.core import hardware, imports
from recipe.inference.loading import precision
from recipe.inference.prompt import separator
from recipe.intake.reader import IMAGE

MAX_NEW_TOKENS = 300

PADDED = 2048  # tokens of a batch, padding counted: 0.8 GB of logits with InternLM2's vocabulary

Turns = Sequence[Tuple[str, str]]  # what was asked, what was answered


class Answer(NamedTuple):
    """`ended`: by an end token of its own, within the limit."""

    text: str
    ended: bool


class Talker:
    """A model folder, or with `adapter` a base and the PEFT adapter on it; `kind`: see `precision`; `tokenizer`:
    as the preset loads it, where that is another way than the folder's own.
    """

    def __init__(
        self, place: Path, template: Any, adapter: Optional[Path] = None, kind: str = "",
        tokenizer: Any = None, eyes: Optional[Tuple[Path, Path]] = None, image: Optional[Path] = None,
    ) -> None:  # fmt: skip
        imports.load()
        import torch
        from transformers import BitsAndBytesConfig

        self.kind = kind or precision(place)
        self.tokenizer = tokenizer or model_code.load_tokenizer(place)
        narrow = torch.bfloat16 if not torch.cuda.is_available() or hardware.has_bf16() else torch.float16
        types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "nf4": narrow}
        more: Dict[str, Any] = {}
        if self.kind == "nf4":
            more["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=narrow,
            )  # fmt: skip
        if torch.cuda.is_available():
            more["device_map"] = {"": torch.cuda.current_device()}
        self.dtype = types[self.kind]
        self.model = model_code.load_model(place, torch_dtype=self.dtype, **more)
        config = self.model.generation_config
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter))
        self.model.eval()
        self.seen = None  # the image that the conversation is about, as tokens
        if eyes is not None and image is not None:
            from recipe.weights.llava import VisionTower

            self.seen = VisionTower(*eyes, self.model.device, self.dtype).embed(image)
        self.template = template
        stops = config.eos_token_id
        self.stops = set(stops if isinstance(stops, list) else [stops])
        self.stops = {stop for stop in (*self.stops, self.tokenizer.eos_token_id) if stop is not None}
        self.words = []  # that end an answer and are several tokens here
        for word in template.get("STOP_WORDS", []):
            tokens = self.tokenizer.encode(word, add_special_tokens=False)
            if len(tokens) == 1:
                self.stops.update(tokens)
            else:
                self.words.append(word)

    def prompt(self, system: str, turns: Turns, question: str) -> str:
        """The conversation so far in the model's chat template, ready for the next answer."""
        parts = [self.template.SYSTEM.format(system=system)] if system else []
        between = separator(self.template, self)
        for number, (asked, answered) in enumerate([*turns, (question, "")], start=1):
            parts.append(self.template.INSTRUCTION.format(input=asked, round=number))
            if number <= len(turns):
                parts.append(answered + between)
        return "".join(parts)

    def answer(
        self, system: str, turns: Turns, question: str, streamer: Any = None, limit: int = MAX_NEW_TOKENS,
        sampling: Optional[Dict[str, Any]] = None,
    ) -> Answer:  # fmt: skip
        """Answer to `question`, of at most `limit` tokens; greedy, or by `sampling`, generate's own settings."""
        if self.seen is not None:
            return self._generate_seeing(self.embedded(system, turns, question), limit, streamer, sampling)
        ids = self.tokenizer(self.prompt(system, turns, question))["input_ids"]
        return self._generate([ids], limit, streamer, sampling)[0]

    def fitting(self, system: str, turns: Turns, question: str, limit: int) -> Turns:
        """The last of `turns`, as many as the model has positions for beside an answer of `limit` tokens."""
        room = self.model.config.max_position_embeddings - limit - (0 if self.seen is None else self.seen.shape[1])
        while turns and len(self.tokenizer(self.prompt(system, turns, question))["input_ids"]) > room:
            turns = turns[1:]
        return turns

    def answers(self, prompts: Sequence[str], limit: int, batch_size: int) -> List[Answer]:
        """Greedy answers to `prompts` (see `prompt`), `batch_size` at once."""
        encoded = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        found: Dict[int, Answer] = {}
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            found.update(zip(numbers, self._generate([encoded[number] for number in numbers], limit)))
        return [found[number] for number in range(len(encoded))]

    def embedded(self, system: str, turns: Turns, question: str) -> Any:
        """[1, length, width]: `prompt` in the model's embeddings, the image before the first question, by XTuner."""
        import torch
        from xtuner.model.utils import prepare_inputs_labels_for_multimodal
        from xtuner.utils import IMAGE_TOKEN_INDEX

        said = [(asked.replace(IMAGE, ""), answered) for asked, answered in (*turns, (question, ""))]
        said[0] = (f"{IMAGE}\n{said[0][0]}", said[0][1])
        before, after = self.prompt(system.replace(IMAGE, ""), said[:-1], said[-1][0]).split(IMAGE, 1)
        ids = self.tokenizer(before)["input_ids"]
        ids = [*ids, IMAGE_TOKEN_INDEX, *self.tokenizer(after, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            return prepare_inputs_labels_for_multimodal(
                llm=self.model, input_ids=torch.tensor([ids], device=self.model.device), pixel_values=self.seen
            )["inputs_embeds"]

    def _generate_seeing(self, embeds: Any, limit: int, streamer: Any, sampling: Optional[Dict[str, Any]]) -> Answer:
        import torch

        mask = torch.ones_like(embeds[..., 0], dtype=torch.long)
        start = {"inputs_embeds": embeds, "attention_mask": mask, "bos_token_id": self.tokenizer.bos_token_id}
        return self._continue(start, 0, limit, streamer, sampling)[0]  # what comes back begins behind the prompt

    def _generate(
        self, prompts: List[List[int]], limit: int, streamer: Any = None, sampling: Optional[Dict[str, Any]] = None
    ) -> List[Answer]:
        import torch

        pad = self.tokenizer.pad_token_id or 0
        longest = max(map(len, prompts))
        # On the left, so that every answer begins where its prompt ends.
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        start = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        return self._continue(start, longest, limit, streamer, sampling)

    def _continue(
        self, start: Dict[str, Any], behind: int, limit: int, streamer: Any, sampling: Optional[Dict[str, Any]]
    ) -> List[Answer]:
        """What the model generates from `start`, generate's own arguments; an answer begins after `behind` tokens."""
        import torch

        def ended(rows: Any, *_: Any, **__: Any) -> bool:
            return all(self._answer(row).ended for row in rows[:, behind:].tolist())

        with torch.inference_mode():
            made = self.model.generate(
                **start, max_new_tokens=limit, streamer=streamer, eos_token_id=sorted(self.stops),
                pad_token_id=self.tokenizer.pad_token_id or 0, stopping_criteria=[ended] if self.words else None,
                **(sampling or {"do_sample": False}),
            )  # fmt: skip
        return [self._answer(row) for row in made[:, behind:].tolist()]

    def _answer(self, tokens: List[int]) -> Answer:
        """Up to the first end token; what stands behind it is padding."""
        end = next((at for at, token in enumerate(tokens) if token in self.stops), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        at = min((text.find(word) for word in self.words if word in text), default=-1)
        return Answer((text[:at] if at >= 0 else text).strip(), end is not None or at >= 0)

    def losses(
        self, encoded: Sequence[Dict[str, List[int]]], batch_size: int,
        see: Optional[Callable[[int], Any]] = None, patches: int = 0,
    ) -> List[Tuple[float, int]]:  # fmt: skip
        """(sum of the losses in nats, their number) over each conversation's tokens with loss, teacher-forced.

        `encoded` is what `plan.encoded` makes, as training does: `input_ids`, and `labels`, below 0 where none is.
        `see`: gives the image of a conversation, by its number, as `patches` tokens; XTuner puts it where its sign is.
        """
        import torch
        from xtuner.model.utils import prepare_inputs_labels_for_multimodal

        found: Dict[int, Tuple[float, int]] = {}
        for numbers in _batches([len(one["input_ids"]) + patches for one in encoded], batch_size):
            longest = len(encoded[numbers[-1]]["input_ids"])
            columns = {}
            for name, filler in (("input_ids", 0), ("labels", -100)):
                rows = [encoded[number][name] for number in numbers]
                columns[name] = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
            lengths = torch.tensor([[len(encoded[number]["input_ids"])] for number in numbers])
            mask = (torch.arange(longest)[None] < lengths).long()
            given = {"attention_mask": mask, **columns}
            given = {name: tensor.to(self.model.device) for name, tensor in given.items()}
            with torch.inference_mode():
                if see:
                    images = torch.cat([see(number) for number in numbers])
                    given = prepare_inputs_labels_for_multimodal(llm=self.model, pixel_values=images, **given)
                labels = given.pop("labels")[:, 1:]
                logits = self.model(**given, use_cache=False).logits
                counted = labels >= 0
                losses = torch.nn.functional.cross_entropy(
                    logits[:, :-1][counted].float(), labels[counted], reduction="none"
                ).double()
            counts = counted.sum(1).tolist()
            for number, part, count in zip(numbers, losses.split(counts), counts):
                found[number] = (float(part.sum()), count)
        return [found[number] for number in range(len(encoded))]


def _batches(lengths: Sequence[int], most: int) -> Iterator[List[int]]:
    """Numbers from the shortest to the longest, in batches of at most `most` and of PADDED tokens, or of one."""
    batch: List[int] = []
    for number in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[number] > PADDED):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
