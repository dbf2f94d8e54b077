"""Strict YAML: what is refused, what is a number, and what --set does."""

from typing import Literal

import pytest
from pydantic import Field

from lmsplit.manifests.configuration import Strict, load, validate
from lmsplit.manifests.errors import ConfigurationError


class Inner(Strict):
    workers: int = 1
    kind: Literal["local", "slurm"] = "local"


class Outer(Strict):
    domains: int = Field(ge=1)
    rate: float = 0.5
    name: str = "x"
    flag: bool = False
    executor: Inner = Inner()
    either: Inner | str | None = None


def read(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(Outer, path, overrides)


def test_load_takes_defaults_then_file_then_set(tmp_path):
    found = read(tmp_path, "domains: 3\nexecutor: {workers: 2}\n", "executor.workers=5", "executor.workers=7", "rate=1")
    assert found == Outer(domains=3, rate=1.0, executor=Inner(workers=7))


def test_loaded_configuration_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path, "domains: 3").domains = 4


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E5", 1e5), (".5", 0.5), ("-2.5e+3", -2500.0), ("3", 3.0), ("1_000", 1000.0), ("+7.", 7.0)],
)
def test_load_reads_numbers_as_numbers(tmp_path, text, value):
    assert read(tmp_path, f"domains: 1\nrate: {text}").rate == value


@pytest.mark.parametrize("text", ["no", "on", "off", "yes", "NO", "y", "1:30", "2026-11-23", "0x1F", "1.2.3", ".inf", "'3'"])
def test_load_reads_words_as_text(tmp_path, text):
    assert read(tmp_path, f"domains: 1\nname: {text}").name == text.strip("'")


@pytest.mark.parametrize("text", ["no", "yes", "on", "1e-5x"])
def test_load_refuses_words_where_a_truth_value_or_number_is_due(tmp_path, text):
    with pytest.raises(ConfigurationError, match=r"domains: .*valid integer"):
        read(tmp_path, f"domains: {text}")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_load_reads_truth_values(tmp_path, text, value):
    assert read(tmp_path, f"domains: 1\nflag: {text}").flag is value


def test_load_names_the_nearest_key_when_one_is_unknown(tmp_path):
    with pytest.raises(ConfigurationError, match=r"c\.yaml: unknown key 'domain': did you mean 'domains'\?"):
        read(tmp_path, "domain: 3\ndomains: 3")


def test_load_names_the_nearest_key_of_a_section(tmp_path):
    with pytest.raises(ConfigurationError, match=r"unknown key 'executor.worker': did you mean 'workers'\?"):
        read(tmp_path, "domains: 3\nexecutor: {worker: 3}")


def test_load_lists_the_known_keys_when_none_is_near(tmp_path):
    with pytest.raises(ConfigurationError, match="unknown key 'zzzz': known keys: domains, "):
        read(tmp_path, "domains: 3\nzzzz: 3")


def test_load_names_every_misfit_with_the_value_found(tmp_path):
    with pytest.raises(ConfigurationError, match=r"domains: .*greater than or equal to 1 \(found 0\); rate: .*\(found 'fast'\)"):
        read(tmp_path, "domains: 0\nrate: fast")


def test_load_names_a_missing_key(tmp_path):
    with pytest.raises(ConfigurationError, match="key 'domains' is missing"):
        read(tmp_path, "")


def test_load_refuses_a_key_that_stands_twice(tmp_path):
    with pytest.raises(ConfigurationError, match=r"c\.yaml: key 'domains' stands twice \(line 3\): keep one"):
        read(tmp_path, "domains: 1\nrate: 1\ndomains: 2")
    with pytest.raises(ConfigurationError, match="key 'workers' stands twice"):
        read(tmp_path, "domains: 1\nexecutor: {workers: 1, workers: 2}")


@pytest.mark.parametrize("text", ["1: a", "[a, b]: c", "{a: b}: c", "true: a", "1.5: a"])
def test_load_refuses_a_key_that_is_no_name(tmp_path, text):
    with pytest.raises(ConfigurationError, match=r"c\.yaml: key .* is not a name"):
        read(tmp_path, f"domains: 1\n? {text.rpartition(':')[0]}\n:{text.rpartition(':')[2]}")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("word", "str"), ("3", "int")])
def test_load_refuses_what_is_no_mapping(tmp_path, text, kind):
    with pytest.raises(ConfigurationError, match=f"expected keys and values, found {kind}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\tdomains: 1", "a: !!python/object/apply:os.getcwd []", "a: \x00", "[" * 2_000]
)
def test_load_refuses_what_is_not_yaml(tmp_path, text):
    with pytest.raises(ConfigurationError, match=r"c\.yaml is not YAML"):
        read(tmp_path, text)


def test_load_refuses_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read the configuration .*absent\.yaml"):
        load(Outer, tmp_path / "absent.yaml")
    with pytest.raises(ConfigurationError, match="cannot read the configuration"):
        read(tmp_path, b"domains: 1\nname: \xff")


@pytest.mark.parametrize("override", ["rate", "=3", ""])
def test_set_refuses_what_is_no_key_and_value(tmp_path, override):
    with pytest.raises(ConfigurationError, match=r"expected key=value, for example --set executor\.workers=2"):
        read(tmp_path, "domains: 1", override)


def test_set_reads_its_value_as_yaml_and_may_hold_an_equals_sign(tmp_path):
    found = read(tmp_path, "domains: 1", "name=a=b", "rate=1e-5", "flag=true", "either={workers: 4}")
    assert (found.name, found.rate, found.flag, found.either) == ("a=b", 1e-5, True, Inner(workers=4))


def test_set_names_itself_when_its_value_is_not_yaml(tmp_path):
    with pytest.raises(ConfigurationError, match="--set name is not YAML"):
        read(tmp_path, "domains: 1", "name=[")


def test_set_makes_the_section_it_names(tmp_path):
    assert read(tmp_path, "domains: 1\neither: word", "either.workers=3").either == Inner(workers=3)


def test_validate_names_where_the_values_come_from():
    with pytest.raises(ConfigurationError, match=r"^somewhere: executor\.kind: .*'local' or 'slurm'"):
        validate(Outer, {"domains": 1, "executor": {"kind": "ray"}}, "somewhere")
