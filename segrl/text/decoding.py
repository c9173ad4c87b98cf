"""Token ids -> their text and the characters of each id.

Byte-level tokenizers (Qwen, Llama 3, GPT-NeoX) spell every token as bytes, so a table of those bytes gives the text and
all offsets of millions of rollout tokens at once. Other tokenizers are decoded piece by piece.
"""

from __future__ import annotations

import codecs
import json
import re
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

# json.loads joins proper pairs, so a surrogate that is left stands alone and is no character.
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def decode(ids: Tensor, tokenizer) -> tuple[str, Tensor]:
    """The text of ``ids`` without special tokens, and the ``(start, end)`` characters of each id."""
    table = _byte_table(tokenizer)
    return _decode_bytes(ids, *table) if table else decode_stepwise(ids, tokenizer)


# --- byte-level tokenizers -------------------------------------------------------------------------------------------

_tables: WeakKeyDictionary = WeakKeyDictionary()


def _byte_table(tokenizer) -> tuple[list[bytes], np.ndarray] | None:
    """The bytes of every id and their lengths, or None when the tokenizer is not byte-level."""
    if tokenizer not in _tables:
        _tables[tokenizer] = _build_byte_table(tokenizer) if _is_byte_level(tokenizer) else None
    return _tables[tokenizer]


def _is_byte_level(tokenizer) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and json.loads(decoder.__getstate__()).get("type") == "ByteLevel"


def _build_byte_table(tokenizer) -> tuple[list[bytes], np.ndarray]:
    """The bytes of every id and their lengths; special tokens and unknown ids have none."""
    byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    table = []
    for id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if id in special or token is None:
            table.append(b"")
        elif all(char in byte_of for char in token):
            table.append(bytes(byte_of[char] for char in token))
        else:  # an added token is spelled as plain text
            table.append(token.encode())
    table.append(b"")  # for ids of a padded vocabulary that stand for nothing
    return table, np.array([len(spelling) for spelling in table])


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: the byte's own where that is printable, else the next free one from 256."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    free = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]


def _decode_bytes(ids: Tensor, table: list[bytes], lengths: np.ndarray) -> tuple[str, Tensor]:
    """The text of ``ids`` and the characters of each id, from the bytes of ``table``."""
    known = ids.clamp_max(len(table) - 1)
    data = b"".join([table[id] for id in known.tolist()])
    text, starts_char = _decode_utf8(data)
    chars_before = np.concatenate([[0], np.cumsum(starts_char)])  # characters that start before each byte
    ends = np.cumsum(lengths[known.numpy()])
    starts = ends - lengths[known.numpy()]
    # A token that begins inside a character carries that character: count the character as not yet begun.
    inside = np.concatenate([~starts_char, [False]])[starts]
    offsets = np.stack([chars_before[starts] - inside, chars_before[ends]], axis=1)
    return text, torch.from_numpy(offsets)


def _decode_utf8(data: bytes) -> tuple[str, np.ndarray]:
    """The text, and for each byte whether a character starts there. Each run of broken bytes becomes one U+FFFD."""
    starts_char = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    broken: list[tuple[int, int]] = []

    def note(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        broken.append((error.start, error.end))
        return "\ufffd", error.end

    codecs.register_error("segrl-note-broken", note)
    text = data.decode("utf-8", "segrl-note-broken")
    for start, end in broken:
        starts_char[start] = True
        starts_char[start + 1 : end] = False
    return text, starts_char


# --- every other tokenizer -------------------------------------------------------------------------------------------


def decode_stepwise(ids: Tensor, tokenizer, window: int = 8) -> tuple[str, Tensor]:
    """The text and the characters of each id, decoded token by token.

    Each token is decoded behind the few before it. Pieces of a character are held back until the character is whole.
    """
    text, spans = "", []
    tokens = ids.tolist()
    anchor = pending = 0  # tokens before `pending` have their text; decoding starts at `anchor`
    for i in range(len(tokens)):
        known = _decode(tokenizer, tokens[anchor:pending])
        whole = _decode(tokenizer, tokens[anchor : i + 1])
        if whole.endswith("\ufffd") and i + 1 < len(tokens) and i - pending < window:
            continue
        piece = whole[len(known) :]
        spans += [(len(text), len(text) + len(piece))] * (i + 1 - pending)
        text += piece
        pending = i + 1
        anchor = max(0, pending - window)
    return text, torch.tensor(spans, dtype=torch.long).reshape(-1, 2)


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
