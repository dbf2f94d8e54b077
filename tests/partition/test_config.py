"""The partition configuration: what it takes, and how clearly it refuses the rest."""

from pathlib import Path
from typing import Any

import pytest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.schema import DOCUMENT_FIELDS
from lmsplit.partition.config import Partition, parse_bytes

SMALLEST = "input: corpus/*.parquet\noutput: manifest/\ndomains: 12\n"


def loaded(directory: Path, text: str = "", overrides: tuple[str, ...] = ()) -> Partition:
    path = directory / "partition.yaml"
    path.write_text(SMALLEST + text)
    return load(Partition, path, overrides)


def test_smallest_configuration_has_the_documented_defaults(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.input.paths == ("corpus/*.parquet",)
    assert (found.input.text, found.input.id, found.input.source, found.input.group, found.input.keep) == (
        "text", "id", "source", None, (),
    )  # fmt: skip
    assert (found.encoder.model, found.encoder.max_tokens, found.encoder.precision) == ("minilm", 128, None)
    assert (found.heldout_fraction, found.near_duplicate_threshold, found.max_bad_fraction) == (0.01, 0.8, 0.001)
    assert (found.tokenizer, found.encoder.device, found.encoder.backend) == (None, None, "torch")
    assert (found.max_record_bytes, found.shard_size, found.duplicate_ids, found.seed) == (64 * 2**20, 256 * 10**6, "error", 0)
    assert found.wanted_sample() == 10_000
    assert (found.max_imbalance, found.keep_embeddings, found.gate) == (None, False, "warn")
    assert found.executor.kind == "local"
    assert found.executor.workers >= 1


@pytest.mark.parametrize(("domains", "given", "wanted"), [(39, None, 10_000), (40, None, 10_240), (40, 7, 7)])
def test_sample_is_256_documents_a_domain_but_at_least_10000(domains: int, given: int | None, wanted: int) -> None:
    found = Partition.model_validate({"input": "a", "output": "b", "domains": domains, "sample_size": given})
    assert found.wanted_sample() == wanted


LATER = (
    ("encoder: cascade", "encoder: cascade comes with a later release"),
    ("agreement: 0.99", "agreement: comes with a later release"),
)


@pytest.mark.parametrize(("text", "message"), LATER)
def test_key_of_a_later_release_is_refused_with_a_message_that_says_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "partition.yaml") in str(caught.value)


def test_encoder_is_given_by_name_or_as_a_mapping(tmp_path: Path) -> None:
    assert loaded(tmp_path, "encoder: minilm") == loaded(tmp_path, "encoder: {model: minilm}") == loaded(tmp_path)
    assert loaded(tmp_path, "encoder: lexical").encoder.content() == {"model": "lexical"}


def test_content_of_an_encoder_names_no_directory(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"encoder: {{model: {tmp_path}, max_tokens: 64}}")
    assert str(tmp_path) not in str(found.content())
    assert found.content()["encoder"]["max_tokens"] == 64


def test_hierarchy_is_a_list_of_levels_and_one_level_is_flat(tmp_path: Path) -> None:
    found = loaded(tmp_path, overrides=("domains=[8, 4]",))
    assert (found.domains, found.num_domains, found.content()["domains"]) == ((8, 4), 32, [8, 4])
    flat = loaded(tmp_path, overrides=("domains=[12]",))
    assert (flat.domains, flat.content()["domains"]) == ((12,), 12)
    assert Partition.model_validate({"input": "a", "output": "b"} | {"domains": found.content()["domains"]}).domains == (8, 4)


@pytest.mark.parametrize("levels", ["true", "[]", "[8, 1]", "[8, 4.5]", "[1000, 1000]", "0", "-3", "2.5", "many", "[[2, 2]]"])
def test_levels_that_cannot_be_are_refused(tmp_path: Path, levels: str) -> None:
    message = r"domains: expected a whole number from 1 to 100000, or for a hierarchy a list with one of at least 2 a level"
    with pytest.raises(ConfigurationError, match=message):
        loaded(tmp_path, overrides=(f"domains={levels}",))


@pytest.mark.parametrize(
    ("keys", "spread", "wanted"),
    [
        ({}, 1.3, 39_000),  # 12 domains, each to within 2 % of its tokens
        ({}, 50.0, 1_000_000),
        ({"sample_size": 500}, 1.3, 500),
        ({"domains": [64, 64]}, 1.3, 1_048_576),  # 256 a domain are more than balancing asks for
        ({"max_imbalance": None}, 50.0, 10_000),
    ],
)
def test_balancing_asks_for_as_many_documents_as_their_lengths_vary(keys: dict[str, Any], spread: float, wanted: int) -> None:
    values = {"input": "a", "output": "b", "domains": 12, "max_imbalance": 1.5}
    assert Partition.model_validate(values | keys).wanted_sample(spread) == pytest.approx(wanted, abs=1)


def test_gate_determines_no_content() -> None:
    values = {"input": "a", "output": "b", "domains": 3}
    assert Partition.model_validate(values | {"gate": "fail"}).content() == Partition.model_validate(values).content()


@pytest.mark.parametrize("text", ["agreement: null", "max_imbalance: null", "keep_embeddings: false", "gate: warn"])
def test_key_may_be_given_with_its_default(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text) == loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domain: 3", r"unknown key 'domain': did you mean 'domains'\?"),
        ("executor: {worker: 3}", r"unknown key 'executor.worker': did you mean 'workers'\?"),
        ("heldout: 0.1", r"unknown key 'heldout': did you mean 'heldout_fraction'\?"),
        ("zzz: 1", "unknown key 'zzz': known keys: .*max_bad_fraction"),
        ("domains: 3", "key 'domains' stands twice"),
        ("seed: -1", r"seed: Input should be greater than or equal to 0 \(found -1\)"),
        ("heldout_fraction: 0.2", r"heldout_fraction: Input should be less than or equal to 0.1 \(found 0.2\)"),
        ("max_bad_fraction: no", r"max_bad_fraction: Input should be a valid number.*\(found 'no'\)"),
        ("duplicate_ids: drop", r"duplicate_ids: Input should be 'error' or 'quarantine' \(found 'drop'\)"),
        ("near_duplicate_threshold: 0.4", r"near_duplicate_threshold: .*greater than or equal to 0.5 \(found 0.4\)"),
        ("encoder: minilmm", r"encoder: expected minilm, lexical, or a mapping such as .* \(found 'minilmm'\)"),
        ("encoder: {model: minilm, max_token: 64}", r"unknown key 'encoder.max_token': did you mean 'max_tokens'\?"),
        ("encoder: {model: minilm, backend: onnx}", "encoder.backend: Input should be 'torch'"),
        ("encoder: {model: minilm, precision: int8}", "encoder.precision: Input should be 'float32', 'bfloat16' or 'float16'"),
        ("encoder: {model: lexical, max_tokens: 64}", "encoder: max_tokens belong to a model, and lexical has none"),
        ("encoder: {model: minilm, revision: main}", "encoder: revision is for a hub id, and 'minilm' is none: leave it out"),
        ("encoder: {model: a/b, trust_remote_code: true}", "encoder: trust_remote_code needs a hub id with a revision"),
        ("shard_size: 1 apple", "shard_size: '1 apple' is no size: expected bytes, or for example 256MB or 64MiB"),
        ("shard_size: 1000", r"shard_size: Input should be greater than or equal to 1048576 \(found 1000\)"),
        ("executor: {workers: -1}", "executor.workers: Input should be greater than or equal to 0"),
    ],
)
def test_misfit_is_named_with_what_was_found_and_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loaded(tmp_path, text)


def test_missing_keys_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("input: a\n")
    with pytest.raises(ConfigurationError, match="key 'output' is missing; key 'domains' is missing"):
        load(Partition, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("256MB", 256 * 10**6), ("64 MiB", 2**26), ("1.5gb", 1_500_000_000), ("2GiB", 2**31), ("7", 7), ("8 B", 8), (" 3kb ", 3000)],
)
def test_sizes_are_read_with_their_units(tmp_path: Path, text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes
    if num_bytes >= 2**20:
        assert loaded(tmp_path, f"shard_size: {text}\n").shard_size == num_bytes


@pytest.mark.parametrize("value", ["MB", "-1MB", "1e3", "1 TB", "", "1MMB"])
def test_text_that_is_no_size_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is no size: expected bytes, or for example 256MB or 64MiB"):
        parse_bytes(value)


def test_set_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    overrides = ("executor.workers=7", "seed=5", "heldout_fraction=1e-3", "domains=4", "domains=5")
    found = loaded(tmp_path, "seed: 3\nexecutor: {workers: 2}\nmax_bad_fraction: 0.5\n", overrides)
    assert (found.executor.workers, found.seed, found.heldout_fraction, found.domains) == (7, 5, 0.001, (5,))
    assert found.max_bad_fraction == 0.5


@pytest.mark.parametrize("override", ["seed", "=3"])
def test_set_without_key_and_value_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--set {override}: expected key=value"):
        loaded(tmp_path, overrides=(override,))


def test_input_may_be_a_path_a_list_or_a_mapping() -> None:
    def paths(given: Any) -> tuple[str, ...]:
        return Partition.model_validate({"input": given, "output": "o", "domains": 1}).input.paths

    assert paths("a") == paths(["a"]) == paths({"paths": "a"}) == paths({"paths": ["a"]}) == ("a",)


@pytest.mark.parametrize("name", [name for name, *_ in DOCUMENT_FIELDS])
def test_kept_column_may_not_have_the_name_of_a_fixed_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"input.keep: columns \['{name}'\] are in every manifest anyway"):
        loaded(tmp_path, overrides=(f"input={{paths: a, keep: [{name}]}}",))


def test_kept_column_may_not_stand_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a column is named twice"):
        loaded(tmp_path, overrides=("input={paths: a, keep: [url, {name: url, type: string}]}",))


def test_content_leaves_out_where_things_are_and_who_does_them() -> None:
    values = {"input": {"paths": "a", "group": "g"}, "output": "o", "domains": 3}
    here = Partition.model_validate(values | {"executor": {"workers": 0}})
    moved = {"input": {"paths": ["x", "y"], "group": "g"}, "output": "p", "executor": {"workers": 9}}
    there = Partition.model_validate(values | moved)
    assert here.content() == there.content()
    assert not {"output", "executor"} & set(here.content())
    other = Partition.model_validate(values | {"seed": 1})
    assert other.content() != here.content()


@pytest.mark.parametrize("key", ["max_bad_fraction", "max_imbalance", "sample_size", "seed", "executor.workers"])
def test_truth_value_is_no_number(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{key}: expected a number, found true"):
        loaded(tmp_path, overrides=(f"{key}=true",))


def test_unknown_key_without_a_value_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'heldout_fracton': did you mean 'heldout_fraction'"):
        loaded(tmp_path, overrides=("heldout_fracton=null",))
