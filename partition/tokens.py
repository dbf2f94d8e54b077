"""Counts the tokens of documents with a given tokenizer: a local `tokenizer.json`, or one from the hub.

Only `tokenizer.json` is read: no pickle, and no code that comes with a tokenizer. Truncation and padding that it carries are
switched off, and text that looks like a special token is counted as text (see `manifests.tokenizer`). It does *not* add the begin
and end tokens that a training would.

Cost: about 4 MB of text a second and core (measured with WordPiece of 30,000 tokens on one of two shared cores); memory as
`manifests.tokenizer` says. The library takes all cores: a worker that shall take one sets `TOKENIZERS_PARALLELISM=false` before
it counts, which is the engine's business.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.tokenizer import PlainTokenizer

_FILE: Final = "tokenizer.json"
_HUB_ID: Final = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_OF_SLOW_ONES: Final = (".model", ".bpe", ".tiktoken", ".vocab", ".txt")
_CONVERT: Final = "open it with transformers' AutoTokenizer and save it with save_pretrained, which writes tokenizer.json"


class TokenCounter:
    """Counts tokens.

    Args:
        tokenizer: what encodes the texts.

    Attributes:
        digest: SHA-256 that pins the tokenizer, wherever it came from.
    """

    def __init__(self, tokenizer: PlainTokenizer) -> None:
        self._tokenizer = tokenizer
        self.digest = tokenizer.digest()

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the number of tokens of each text: all of them, and no special token.

        Args:
            texts: N texts.

        Returns:
            (N,) int32.
        """
        return np.array(self._tokenizer.lengths(texts), dtype=np.int32)


def open_counter(location: str) -> TokenCounter:
    """Open a tokenizer for counting.

    Args:
        location: path of a `tokenizer.json`, or of a directory that holds one; else an id on the hub: `organisation/name`, or
            `organisation/name@revision`. Without a revision it is the hub's newest, which the digest pins.

    Raises:
        ConfigurationError: there is none, it has no `tokenizer.json`, or the package `tokenizers` is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise ConfigurationError(f"tokenizer {location!r} needs the package tokenizers: pip install tokenizers")
    serialized = _serialized(location)
    try:
        return TokenCounter(PlainTokenizer(serialized))
    except ValueError as error:
        raise ConfigurationError(
            f"tokenizer {location!r} is no {_FILE} ({error}): give the file of that name that a fast tokenizer has"
        ) from error


def _serialized(location: str) -> str:
    path = Path(location)
    if path.is_dir():
        return _of_directory(path)
    if path.is_file():
        return _of_file(path)
    match = _HUB_ID.fullmatch(location)
    if match is None or path.suffix in {".json", *_OF_SLOW_ONES}:
        raise ConfigurationError(
            f"tokenizer {location!r} does not exist: expected the path of a {_FILE}, of a directory that holds one, or an id on "
            "the hub (organisation/name, or organisation/name@revision)"
        )
    return _of_hub(match["name"], match["revision"] or "main")


def _of_directory(directory: Path) -> str:
    if (directory / _FILE).is_file():
        return _of_file(directory / _FILE)
    slow = sorted(path.name for path in directory.iterdir() if path.suffix in _OF_SLOW_ONES or path.name == "vocab.json")
    instead = f"only {', '.join(slow)}, which a slow tokenizer has: {_CONVERT}" if slow else "give a directory that does"
    raise ConfigurationError(f"tokenizer {str(directory)!r} holds no {_FILE}{', ' if slow else ': '}{instead}")


def _of_file(path: Path) -> str:
    if path.suffix in _OF_SLOW_ONES:
        raise ConfigurationError(f"tokenizer {str(path)!r} is the file of a slow tokenizer, expected a {_FILE}: {_CONVERT}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"tokenizer {str(path)!r} cannot be read ({error}): give a {_FILE}") from error


def _of_hub(name: str, revision: str) -> str:
    from tokenizers import Tokenizer

    try:
        return str(Tokenizer.from_pretrained(name, revision=revision).to_str())
    except Exception as error:  # the hub's errors have no common kind, the library's are plain exceptions
        why = str(error).strip().partition("\n")[0]
        raise ConfigurationError(
            f"tokenizer {name}@{revision} is not to be had from the hub ({type(error).__name__}: {why}): check the id, the "
            f"revision and the network, or give the path of its {_FILE}; one without that file is a slow one: {_CONVERT}"
        ) from error
