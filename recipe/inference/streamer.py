"""Passes on an answer's text while it is generated."""

from typing import Any, List

from transformers import TextStreamer

KEPT = 16  # tokens; enough for a character of several tokens, and for the space that a first token loses


class AnswerStreamer(TextStreamer):
    """transformers' TextStreamer decodes the whole line anew at each token; this one only its last tokens."""

    token_cache: List[int]
    print_len: int

    def put(self, value: Any) -> None:
        super().put(value)
        if self.token_cache and len(self.token_cache) % KEPT == 0:
            self._forget()

    def _forget(self) -> None:
        """Drop all but the last tokens, where these hold what is not passed on yet."""
        waiting = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[self.print_len :]
        text = self.tokenizer.decode(self.token_cache[-KEPT:], **self.decode_kwargs)
        if 2 * len(waiting) < len(text) and text.endswith(waiting):
            self.token_cache = self.token_cache[-KEPT:]
            self.print_len = len(text) - len(waiting)

    def _is_chinese_char(self, cp: int) -> bool:
        """Punctuation counts too: without it TextStreamer waits for the next character or space."""
        return bool(super()._is_chinese_char(cp)) or 0x3000 <= cp <= 0x303F or 0xFF00 <= cp <= 0xFFEF
