"""Asks the evaluation questions during training, several at once; the rendered config names the hook."""

from typing import Any, List

import torch
from mmengine.logging import print_log
from xtuner.engine.hooks import EvaluateChatHook

from recipe.core.translation import english
from recipe.inference import decoding

TAIL = 64  # tokens in which stop words are looked for: decoding all of them takes longer than generating the next
ROWS = 4  # questions at a time, so that their keys and values stay small


class _Fault(Exception):
    """The decoder does not answer as the model does."""


class BatchChatHook(EvaluateChatHook):
    """XTuner's hook, which also writes the log; without a GPU and for models that the decoder does not know, it asks
    one question after the other.

    Training's random numbers stay as they are.
    """

    decodes_on_cpu = False  # for tests

    def _eval_language(
        self, runner: Any, model: Any, device: Any, max_new_tokens: Any = None, save_eval_output: bool = False
    ) -> None:
        if (device.type != "cuda" and not self.decodes_on_cpu) or decoding.obstacle(model.llm):
            super()._eval_language(runner, model, device, max_new_tokens, save_eval_output)
            return
        texts = [
            (self.system + self.instruction).format(input=question, round=1, **runner.cfg)
            for question in self.evaluation_inputs
        ]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                outputs = self._generate(model.llm, [self.tokenizer.encode(text) for text in texts], max_new_tokens)
            except (_Fault, torch.cuda.OutOfMemoryError) as error:
                print_log(f"The questions are asked one after the other: {str(error)[:300]}.", logger="current")
                outputs = []
        if not outputs:
            super()._eval_language(runner, model, device, max_new_tokens, save_eval_output)
            return
        for output in outputs:
            runner.logger.info(f"Sample output:\n{output}\n")
        if save_eval_output:
            self._save_eval_output(runner, [f"{output}\n" for output in outputs])

    def _generate(self, llm: Any, prompts: List[List[int]], limit: int) -> List[str]:
        """Prompts and answers, as text."""
        decoder, found = decoding.Decoder(llm), []
        with english():  # as all of the log
            fault = decoder.fault(prompts[:ROWS])
        if fault:
            raise _Fault(f"the fast decoder is not used, {fault}")
        for first in range(0, len(prompts), ROWS):
            asked = prompts[first : first + ROWS]
            answers = decoder.generate(
                asked, limit, [self.gen_config.eos_token_id], self.gen_config.pad_token_id, self.gen_config,
                is_complete=lambda row, tokens: self._is_stopped(asked[row] + tokens),  # noqa: B023
            )  # fmt: skip
            found += [self.tokenizer.decode(prompt + answer) for prompt, answer in zip(asked, answers)]
        del decoder
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the recordings' memory
        return found

    def _is_stopped(self, tokens: List[int]) -> bool:
        """Whether XTuner's stop words, or a request to stop training, end this answer."""
        ids = torch.tensor([tokens[-TAIL:]])
        return any(criterion(ids, None) for criterion in self.stop_criteria)
