from pathlib import Path

import pytest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.config import Cloze, Dual, Interference, Latency, Training

SMALLEST = """
manifest: manifest/
output: experts/
model: 1m
seed_model: {tokens: 3_000_000}
expert: {tokens: 300_000}
"""


def configuration(directory: Path, *overrides: str, text: str = SMALLEST) -> Training:
    path = directory / "train.yaml"
    path.write_text(text)
    return load(Training, path, overrides)


def test_configuration_reads_the_smallest_file(tmp_path: Path) -> None:
    read = configuration(tmp_path)
    assert (read.seed_model.tokens, read.expert.tokens, read.model) == (3_000_000, 300_000, "1m")
    assert (read.sft, read.seed, read.tokenizer, read.seed_model.learning_rate) == ({}, 0, None, None)


def test_configuration_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        configuration(tmp_path).seed = 1


def test_configuration_takes_an_inline_model(tmp_path: Path) -> None:
    read = configuration(tmp_path, "model={config: {model_type: llama, hidden_size: 32}}")
    assert not isinstance(read.model, str)
    assert read.model.config["hidden_size"] == 32


def test_configuration_names_the_nearest_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'manifset': did you mean 'manifest'"):
        configuration(tmp_path, "manifset=x")


def test_configuration_names_the_section_that_a_key_belongs_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key 'interference': did you mean 'expert\.interference'"):
        configuration(tmp_path, "interference=null")


@pytest.mark.parametrize(
    "override",
    [
        "expert.mixture=uniform",
        "mixture=uniform",
        "since=3",
        "trackers=[wandb]",
    ],
)
def test_configuration_refuses_keys_of_later_releases(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigurationError, match="comes with a later release"):
        configuration(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed_model.tokens=0", "seed_model.tokens: Input should be greater than 0"),
        ("expert.learning_rate=2", "expert.learning_rate: Input should be less than 1"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("model={config: {hidden_size: 3}}", "needs a model_type"),
        ("executor.kind=condor", "executor.kind"),
        ("executor.partition=long", "partition belongs to kind slurm, this is local: leave it out"),
        ("executor={kind: slurm}", "kind slurm needs a partition, for example partition: cpu"),
        ("executor.workers=0", "executor.workers: Input should be greater than or equal to 1"),
        ("executor.processes=0", "executor.processes: Input should be greater than or equal to 1"),
        ("expert.interference={fraction: 1}", "expert.interference.fraction: Input should be less than 1"),
        ("expert.interference={weight: true}", "expected a number, found true"),
        ("expert.interference={weight: inf}", "expert.interference.weight: Input should be a finite number"),
        ("expert.interference={fraction: 0}", "expert.interference.fraction: Input should be greater than 0"),
        ("expert.domain_tokens={d00000: 0}", "expert.domain_tokens.d00000: Input should be greater than 0"),
        ("expert.optimizer_state=old", "expert.optimizer_state: Input should be 'fresh' or 'kept'"),
        ("seed_model.max_repetitions=0", "seed_model.max_repetitions: Input should be greater than 0"),
        ("seed_model.mixture={d00000: -1}", "Input should be greater than or equal to 0"),
        ("seed_model.mixture=even", "seed_model.mixture"),
        ("evaluation.every_steps=0", "evaluation.every_steps: Input should be greater than 0"),
        ("evaluation.documents=0", "evaluation.documents: Input should be greater than 0"),
        ("attention=flex_attention", "attention: Input should be 'auto', 'eager', 'sdpa'"),
        ("where={license: mit}", "where.license"),
        ("where={license: []}", "where.license: List should have at least 1 item"),
        ("expert.where={license: [null]}", "expert.where.license"),
        ("seed_model.where={license: {mit: 1}}", "seed_model.where.license"),
    ],
)
def test_configuration_states_the_bound_it_checks(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configuration(tmp_path, override)


WHOLE = """
manifest: manifest/@3
output: experts/
model: 1m
tokenizer: {vocabulary_size: 400}
seed_model: {tokens: 9, learning_rate: 0.1, mixture: {d00000: 2, d00001: 0.5}, max_repetitions: 1.5, where: {year: [2001]},
  sft: {weight_decay: 0.2}}
expert: {tokens: 8, domain_tokens: {d00001: 3}, optimizer_state: kept, max_repetitions: 4, where: {gold: [true]},
  interference: {kind: hinge, weight: 0.3, fraction: 0.1, level: document, margin: 0.01, temperature: null,
  dual: {target: 0.02, rate: 1}}, sft: {warmup_steps: 2}}
where: {license: [mit, cc0], score: [0.5, 1]}
sft: {max_length: 64}
evaluation:
  every_steps: 5
  documents: null
  prompt_tokens: 32
  prefix_tokens: [8, 64]
  labels: topic
  cloze: {context_tokens: 20, continuation_tokens: 10, choices: 5}
  latency: {answer_tokens: 8, requests: 9, clients: [1, 4], energy: true}
energy: true
attention: sdpa
seed: 3
executor: {kind: local, workers: 2, processes: 4}
"""


def test_configuration_takes_every_key(tmp_path: Path) -> None:
    read = configuration(tmp_path, text=WHOLE)
    assert set(read.model_fields_set) == set(Training.model_fields)
    for section in (read.seed_model, read.expert, read.evaluation):
        assert set(section.model_fields_set) >= set(type(section).model_fields) - {"learning_rate"}
    assert read.where == {"license": ["mit", "cc0"], "score": [0.5, 1]}
    assert (read.seed_model.mixture, read.seed_model.where) == ({"d00000": 2, "d00001": 0.5}, {"year": [2001]})
    assert read.expert.where is not None
    assert read.expert.where["gold"][0] is True
    assert (read.expert.domain_tokens, read.expert.optimizer_state) == ({"d00001": 3}, "kept")
    dual = Dual(target=0.02, rate=1)
    assert read.expert.interference == Interference(
        kind="hinge", weight=0.3, fraction=0.1, level="document", margin=0.01, temperature=None, dual=dual
    )
    assert (read.evaluation.every_steps, read.evaluation.documents) == (5, None)
    assert (read.evaluation.prompt_tokens, read.evaluation.prefix_tokens, read.evaluation.labels) == (32, (8, 64), "topic")
    assert read.evaluation.cloze == Cloze(context_tokens=20, continuation_tokens=10, choices=5)
    assert read.evaluation.latency == Latency(answer_tokens=8, requests=9, clients=(1, 4), energy=True)
    assert (read.energy, read.executor.workers, read.executor.processes) == (True, 2, 4)


def test_interference_weighs_all_tokens_alike(tmp_path: Path) -> None:
    """By hand: with a fifth of the tokens, 1/4 makes each count like an own one."""
    for given, weight in (("", 0.25), (", weight: 0.1", 0.1)):
        read = configuration(tmp_path, f"expert.interference={{fraction: 0.2{given}}}").expert.interference
        assert read is not None
        assert read.start_weight == pytest.approx(weight)


def test_configuration_has_a_default_for_every_key_but_five(tmp_path: Path) -> None:
    read = configuration(tmp_path)
    assert (read.where, read.energy, read.evaluation.every_steps, read.evaluation.documents) == (None, False, None, 200)
    assert (read.seed_model.mixture, read.seed_model.max_repetitions, read.seed_model.sft) == ("natural", None, {})
    assert (read.expert.interference, read.expert.domain_tokens, read.expert.optimizer_state) == (Interference(), {}, "fresh")
    assert (read.executor.kind, read.executor.workers, read.executor.processes) == ("local", 1, 1)


def test_configuration_names_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"key 'expert' is missing"):
        configuration(tmp_path, text=SMALLEST.replace("expert: {tokens: 300_000}", ""))
