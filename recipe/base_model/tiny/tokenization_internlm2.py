"""The InternLM2 tokenizer: a sentencepiece model whose last six ids carry the chat markers."""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path

import sentencepiece
from transformers.tokenization_utils import AddedToken, PreTrainedTokenizer

VOCAB_FILES_NAMES = {"vocab_file": "tokenizer.model"}

# In the order of their ids, the last six of the vocabulary. The sentencepiece file has placeholders there
# ([UNUSED_TOKEN_141] and following), so only the tokenizer knows the names.
MARKERS = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
)


def special_tokens(vocabulary):
    """id → special token, for a vocabulary of `vocabulary` ids."""
    names = dict(enumerate(("<unk>", "<s>", "</s>")))
    names.update(enumerate(MARKERS, vocabulary - len(MARKERS)))
    return {i: AddedToken(name, normalized=False, special=True) for i, name in names.items()}


class InternLM2Tokenizer(PreTrainedTokenizer):
    """Encodes text and decodes it without loss, except that U+2581 becomes a space.

    Encoding with special tokens adds <s> in front and no </s> at the end. Raises OSError if `vocab_file` cannot be
    read, RuntimeError if it is not a sentencepiece model.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=(),
        clean_up_tokenization_spaces=False,
        **kwargs,
    ):
        self.vocab_file = str(vocab_file)
        self.sp_model = sentencepiece.SentencePieceProcessor()
        self.sp_model.Load(self.vocab_file)
        kwargs.setdefault("added_tokens_decoder", special_tokens(self.vocab_size))
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            additional_special_tokens=list(additional_special_tokens or reversed(MARKERS)),
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    @property
    def vocab_size(self):
        return self.sp_model.GetPieceSize()

    def get_vocab(self):
        """token → id, with the markers' names instead of their placeholders."""
        vocabulary = {self.convert_ids_to_tokens(i): i for i in range(self.vocab_size)}
        vocabulary.update(self.added_tokens_encoder)
        return vocabulary

    def _tokenize(self, text, **kwargs):
        return self.sp_model.EncodeAsPieces(text)

    def _convert_token_to_id(self, token):
        return self.sp_model.PieceToId(token)

    def _convert_id_to_token(self, index):
        return self.sp_model.IdToPiece(index)

    def convert_tokens_to_string(self, tokens):
        """The text of the tokens; special tokens stay as they are."""
        text = []
        for special, run in groupby(tokens, self.added_tokens_encoder.__contains__):
            text.append("".join(run) if special else self.sp_model.DecodePieces(list(run)))  # noqa: B031
        return "".join(text)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [self.bos_token_id] + token_ids_0 + (token_ids_1 or [])

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(i in special) for i in token_ids_0]
        return [1] + [0] * (len(token_ids_0) + len(token_ids_1 or []))

    def create_token_type_ids_from_sequences(self, token_ids_0, token_ids_1=None):
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Write the sentencepiece model into the folder and return (its path,)."""
        prefix = filename_prefix + "-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + VOCAB_FILES_NAMES["vocab_file"])
        source = Path(self.vocab_file)
        if not source.is_file():
            target.write_bytes(self.sp_model.serialized_model_proto())
        elif source.resolve() != target.resolve():
            shutil.copyfile(str(source), str(target))
        return (str(target),)
