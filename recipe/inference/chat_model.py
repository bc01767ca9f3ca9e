"""A loaded model with tokenizer, chat template and stop tokens; used by chat, samples, evaluation and web page.

On a GPU it is loaded in 16 bits if that fits into free memory, else in 4 bits (NF4); on the CPU in fp32, or in bf16 if
memory is short.
"""

import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from recipe.base_model import model_code
from recipe.core import hardware, imports
from recipe.core.translation import _
from recipe.inference import limits
from recipe.inference.loading import choose_precision, free_memory
from recipe.inference.prompt import separator
from recipe.intake.images import IMAGE_TOKEN

MAX_NEW_TOKENS = 300

MAX_BATCH_TOKENS = 2048  # with padding: 0.8 GB of logits for InternLM2's vocabulary

Turns = Sequence[Tuple[str, str]]  # (question, answer)


class Answer(NamedTuple):
    """`ended`: the model stopped by itself, within the limit."""

    text: str
    ended: bool


class ChatModel:
    """A model folder, optionally with a PEFT adapter. `precision`: see `choose_precision`; `tokenizer`: the preset's if
    it is not the folder's own. `vision`: folders of visual encoder and projector, with which `image` is read.
    """

    def __init__(
        self, place: Path, template: Any, adapter: Optional[Path] = None, precision: str = "",
        tokenizer: Any = None, vision: Optional[Tuple[Path, Path]] = None, image: Optional[Path] = None,
    ) -> None:  # fmt: skip
        imports.load()
        import torch
        from transformers import BitsAndBytesConfig

        from recipe.inference import decoding

        self.precision = precision or choose_precision(place)
        self.tokenizer = tokenizer or model_code.load_tokenizer(place)
        half = torch.bfloat16 if not torch.cuda.is_available() or hardware.has_bf16() else torch.float16
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "nf4": half}
        options: Dict[str, Any] = {}
        if self.precision == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=half,
            )  # fmt: skip
        if torch.cuda.is_available():
            options["device_map"] = {"": torch.cuda.current_device()}
        self.dtype = dtypes[self.precision]
        self.model = model_code.load_model(place, torch_dtype=self.dtype, **options)
        config = self.model.generation_config
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter))
        self.model.eval()
        self.decoder: Any = None  # on a GPU, for InternLM2; everything else is left to transformers' `generate`
        if self.model.device.type == "cuda" and not decoding.obstacle(self.model):
            self.decoder = decoding.Decoder(self.model)
        self.image = None  # embeddings of the image that the conversation is about
        if vision is not None and image is not None:
            from recipe.weights.llava import VisionTower

            self.image = VisionTower(*vision, self.model.device, self.dtype).embed(image)
        self.template = template
        eos = config.eos_token_id
        stop_tokens = (*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id)
        self.stop_tokens = {token for token in stop_tokens if token is not None}
        self.stop_words = []  # those of several tokens
        for word in template.get("STOP_WORDS", []):
            tokens = self.tokenizer.encode(word, add_special_tokens=False)
            if len(tokens) == 1:
                self.stop_tokens.update(tokens)
            else:
                self.stop_words.append(word)

    def prompt(self, system: str, turns: Turns, question: str) -> str:
        """The conversation in the model's chat template, ready for the next answer."""
        parts = [self.template.SYSTEM.format(system=system)] if system else []
        between = separator(self.template, self)
        for number, (asked, answered) in enumerate([*turns, (question, "")], start=1):
            parts.append(self.template.INSTRUCTION.format(input=asked, round=number))
            if number <= len(turns):
                parts.append(answered + between)
        return "".join(parts)

    @property
    def _value_bytes(self) -> int:
        """Bytes of a key or value."""
        return 4 if self.precision == "fp32" else 2

    def answer(
        self, system: str, turns: Turns, question: str, streamer: Any = None, limit: int = MAX_NEW_TOKENS,
        sampling: Optional[Dict[str, Any]] = None,
    ) -> Answer:  # fmt: skip
        """Answer `question` in at most `limit` tokens, greedily or with `sampling` (arguments of `generate`).

        Raises InputWrong for a question that is too long.
        """
        if self.image is not None:
            embeds = self.embed_prompt(system, turns, question)
            limits.check_prompt(self.model.config, embeds.shape[1], embeds.element_size(), free_memory())
            return self._generate_with_image(embeds, limit, streamer, sampling)
        ids = self.tokenizer(self.prompt(system, turns, question))["input_ids"]
        limits.check_prompt(self.model.config, len(ids), self._value_bytes, free_memory())
        return self._generate([ids], limit, streamer, sampling)[0]

    def fit_history(self, system: str, turns: Turns, question: str, limit: int) -> Turns:
        """Return the last `turns` that fit the memory, and the positions with an answer of `limit` tokens."""
        config, free = self.model.config, free_memory()
        image = 0 if self.image is None else self.image.shape[1]
        while turns:
            tokens = image + len(self.tokenizer(self.prompt(system, turns, question))["input_ids"])
            is_short = tokens <= config.max_position_embeddings - limit
            if is_short and limits.prompt_bytes(config, tokens, self._value_bytes) <= free:
                break
            turns = turns[1:]
        return turns

    def answer_batch(self, prompts: Sequence[str], limit: int, batch_size: int) -> List[Answer]:
        """Answer `prompts` (from `prompt`) greedily, `batch_size` at a time."""
        encoded = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        answers: Dict[int, Answer] = {}
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            answers.update(zip(numbers, self._generate([encoded[number] for number in numbers], limit)))
        return [answers[number] for number in range(len(encoded))]

    def embed_prompt(self, system: str, turns: Turns, question: str) -> Any:
        """Return `prompt` as embeddings [1, length, hidden size], with the image before the first question."""
        import torch
        from xtuner.model.utils import prepare_inputs_labels_for_multimodal
        from xtuner.utils import IMAGE_TOKEN_INDEX

        conversation = [(asked.replace(IMAGE_TOKEN, ""), answered) for asked, answered in (*turns, (question, ""))]
        conversation[0] = (f"{IMAGE_TOKEN}\n{conversation[0][0]}", conversation[0][1])
        before, after = self.prompt(system.replace(IMAGE_TOKEN, ""), conversation[:-1], conversation[-1][0]).split(
            IMAGE_TOKEN, 1
        )
        ids = self.tokenizer(before)["input_ids"]
        ids = [*ids, IMAGE_TOKEN_INDEX, *self.tokenizer(after, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            return prepare_inputs_labels_for_multimodal(
                llm=self.model, input_ids=torch.tensor([ids], device=self.model.device), pixel_values=self.image
            )["inputs_embeds"]

    def _generate_with_image(
        self, embeds: Any, limit: int, streamer: Any, sampling: Optional[Dict[str, Any]]
    ) -> Answer:
        import torch

        mask = torch.ones_like(embeds[..., 0], dtype=torch.long)
        start = {"inputs_embeds": embeds, "attention_mask": mask, "bos_token_id": self.tokenizer.bos_token_id}
        return self._continue(start, 0, limit, streamer, sampling)[0]  # generate returns no prompt tokens here

    def _generate(
        self, prompts: List[List[int]], limit: int, streamer: Any = None, sampling: Optional[Dict[str, Any]] = None
    ) -> List[Answer]:
        import torch

        pad, sampling = self.tokenizer.pad_token_id or 0, sampling or {"do_sample": False}
        if self._uses_decoder(prompts, limit, sampling):
            is_complete = (lambda _number, row: self._answer(row).ended) if self.stop_words else None
            rows = self.decoder.generate(
                prompts, limit, sorted(self.stop_tokens), pad, sampling, streamer, is_complete
            )  # fmt: skip
            return [self._answer(row) for row in rows]
        longest = max(map(len, prompts))
        # Left padding, so that every answer follows its prompt.
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        start = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        return self._continue(start, longest, limit, streamer, sampling)

    def _uses_decoder(self, prompts: List[List[int]], limit: int, sampling: Dict[str, Any]) -> bool:
        if self.decoder is None or not self.decoder.accepts(prompts, limit, sampling):
            return False
        fault = self.decoder.fault(prompts)
        if fault:
            self.decoder = None
            print(
                _("The fast decoder is not used on this machine: {fault}. Answers take longer.", fault=fault),
                file=sys.stderr,
            )
        return not fault

    def _continue(
        self, start: Dict[str, Any], skip: int, limit: int, streamer: Any, sampling: Optional[Dict[str, Any]]
    ) -> List[Answer]:
        """Generate from `start` (arguments of `generate`); answers begin after `skip` tokens."""
        import torch

        def ended(rows: Any, *_scores: Any, **_options: Any) -> bool:
            return all(self._answer(row).ended for row in rows[:, skip:].tolist())

        with torch.inference_mode():
            output = self.model.generate(
                **start, max_new_tokens=limit, streamer=streamer, eos_token_id=sorted(self.stop_tokens),
                pad_token_id=self.tokenizer.pad_token_id or 0, stopping_criteria=[ended] if self.stop_words else None,
                **(sampling or {"do_sample": False}),
            )  # fmt: skip
        return [self._answer(row) for row in output[:, skip:].tolist()]

    def _answer(self, tokens: List[int]) -> Answer:
        """The text up to the first stop token or stop word; the rest is padding."""
        end = next((at for at, token in enumerate(tokens) if token in self.stop_tokens), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        at = min((text.find(word) for word in self.stop_words if word in text), default=-1)
        return Answer((text[:at] if at >= 0 else text).strip(), end is not None or at >= 0)

    def losses(
        self, encoded: Sequence[Dict[str, List[int]]], batch_size: int,
        embed_image: Optional[Callable[[int], Any]] = None, patches: int = 0,
    ) -> List[Tuple[float, int]]:  # fmt: skip
        """Return (sum of teacher-forced losses in nats, number of tokens with loss) for each conversation.

        `encoded` comes from `tokens.encoded`: `input_ids` and `labels`, which are negative for tokens without loss.
        `embed_image` maps a conversation's number to its image as `patches` embeddings.
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
            batch = {"attention_mask": mask, **columns}
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            with torch.inference_mode():
                if embed_image:
                    images = torch.cat([embed_image(number) for number in numbers])
                    batch = prepare_inputs_labels_for_multimodal(llm=self.model, pixel_values=images, **batch)
                labels = batch.pop("labels")[:, 1:]
                logits = self.model(**batch, use_cache=False).logits
                has_loss = labels >= 0
                losses = torch.nn.functional.cross_entropy(
                    logits[:, :-1][has_loss].float(), labels[has_loss], reduction="none"
                ).double()
            counts = has_loss.sum(1).tolist()
            for number, part, count in zip(numbers, losses.split(counts), counts):
                found[number] = (float(part.sum()), count)
        return [found[number] for number in range(len(encoded))]


def _batches(lengths: Sequence[int], size: int) -> Iterator[List[int]]:
    """Group indices by length, shortest first: at most `size` and MAX_BATCH_TOKENS a batch, but at least one."""
    batch: List[int] = []
    for number in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if batch and (len(batch) == size or (len(batch) + 1) * lengths[number] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
