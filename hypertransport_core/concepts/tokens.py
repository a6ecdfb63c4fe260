"""How many tokens CLIP's tokenizer makes of a prompt: counted where open_clip is installed, else estimated."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

CLIP_TOKENS = 77
"""Tokens that CLIP's text towers read, with the start and the end; more are cut off."""

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = slice(1, 49152 - 256 - 2 + 1)  # the lines of the file that CLIP uses


def token_counter(estimate: bool = False) -> tuple[Callable[[str], int], str]:
    """A function from a prompt to its number of tokens, with start and end, and a name that says how it counts.

    open_clip's vocabulary is read where it is installed, without importing it, which would take many seconds.
    """
    spec = None if estimate else find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / VOCABULARY).is_file():
            return ClipTokens(path).count, "counted with open_clip's CLIP vocabulary"
    return estimated_tokens, "estimated from above, because open_clip is not installed"


class ClipTokens:
    """CLIP's byte pair encoding, for counting."""

    def __init__(self, path: Path) -> None:
        """path: the gzipped list of merges."""
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[_MERGES]
        self._ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        self._signs = _byte_signs()
        self._pieces = lru_cache(maxsize=1 << 16)(self._count_word)

    def count(self, text: str) -> int:
        """Tokens of a text, with start and end."""
        words = re.findall(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", text.lower())
        return 2 + sum(map(self._pieces, words))

    def _count_word(self, word: str) -> int:
        parts = [self._signs[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, at = min((self._ranks.get(pair, len(self._ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(self._ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return len(parts)


def _byte_signs() -> dict[int, str]:
    """The printable sign that stands for each byte in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def estimated_tokens(text: str) -> int:
    """A number of tokens, with start and end, that CLIP does not exceed in ordinary English.

    A word of one or two letters is one token, of up to seven two, and every begun three letters more are another; digits
    and signs are one each, other letters one a byte.
    """
    count = 2
    for word in re.findall(r"[a-z]+|\d|[^\sa-z\d]", text.lower()):
        if word.isascii() and word.isalpha():
            count += 1 + max(0, -(-(len(word) - 4) // 3)) if len(word) > 4 else 1 + (len(word) > 2)
        else:
            count += len(word.encode())
    return count
