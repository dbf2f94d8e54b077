"""Reads a YAML configuration strictly into a frozen model; every command with a configuration goes through here.

Strict means: unknown keys are errors that name the nearest known one, duplicate keys are errors, numbers that YAML 1.1 reads
as text (`1e-5`) are numbers, and only `true` and `false` are truth values (`no` and `on` stay text).
Precedence: the model's default < the file < `--set a.b=c`.
"""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from lmsplit.manifests.errors import ConfigurationError


class Strict(BaseModel):
    """A frozen configuration section that refuses unknown keys, and truth values, infinity and NaN where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError(f"expected a number, found {str(value).lower()}")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield what a field may be, out of its unions and annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    else:
        yield annotation


Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types on PyYAML's safe loader, and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a key that stands twice is an error."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigurationError(f"key {key!r} is not a name (line {key_node.start_mark.line + 1}): quote it")
            if key in seen:
                raise ConfigurationError(f"key {key!r} stands twice (line {key_node.start_mark.line + 1}): keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def _decimal(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(node.value).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def load(model: type[Model], path: str | Path, overrides: Sequence[str] = ()) -> Model:
    """Read a configuration file.

    Args:
        model: the configuration's model.
        path: a YAML file.
        overrides: settings such as `executor.workers=2`, each value read as YAML; a later one wins.

    Returns:
        The validated, frozen configuration.

    Raises:
        ConfigurationError: the file cannot be read, is no YAML mapping, or does not fit the model; every misfit is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    values = _parse(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return validate(model, values, str(path))


def validate(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate `values` against `model`; see `load`. `where` names their origin in errors."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, finding) for finding in error.errors()]
        raise ConfigurationError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not YAML: {error}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    keys, separator, text = override.partition("=")
    if not separator or not keys:
        raise ConfigurationError(f"--set {override}: expected key=value, for example --set executor.workers=2")
    *sections, last = keys.strip().split(".")
    target = values
    for section in sections:
        inner = target.get(section)
        if not isinstance(inner, dict):
            inner = target[section] = {}
        target = inner
    target[last] = _parse(text, f"--set {keys}")


def _explain(model: type[BaseModel], finding: Any) -> str:
    path = ".".join(str(part) for part in finding["loc"])
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "extra_forbidden":
        section = path.rpartition(".")[0]
        known = sorted(_known_keys(model), key=lambda key: (key.rpartition(".")[0] != section, key))
        names = [key.rpartition(".")[2] for key in known]
        near = difflib.get_close_matches(str(finding["loc"][-1]), names, n=1)
        meant = known[names.index(near[0])] if near else ""
        elsewhere = meant.rpartition(".")[0] != section
        hint = f"did you mean {(meant if elsewhere else near[0])!r}?" if near else f"known keys: {', '.join(sorted(set(names)))}"
        return f"unknown key {path!r}: {hint}"
    if finding["type"] == "missing":
        return f"key {path!r} is missing"
    found = finding.get("input")
    return f"{path or 'configuration'}: {message}" + (f" (found {found!r})" if isinstance(found, str | int | float) else "")


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Return every key, those inside a section with its name and a dot before them."""
    keys = set(model.model_fields)
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= {f"{name}.{key}" for key in _known_keys(kind)}
    return keys
