"""The plan: what names a run, and what does not."""

import os
import sys
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.partition.planning import Planned, make_plan, software
from lmsplit.partition.run import Run
from tests.models import change, copied
from tests.partition.corpora import configuration, topical, write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.jsonl", topical(20))
    write(tmp_path / "in" / "b.parquet", topical(20, first=20))
    return tmp_path / "in"


def test_run_id_ignores_place_workers_and_output(corpus: Path, tmp_path: Path) -> None:
    first = make_plan(configuration(corpus, tmp_path / "one")).run_id
    corpus.rename(tmp_path / "moved")
    pattern = {"paths": str(tmp_path / "moved" / "*"), "group": "group"}
    assert make_plan(configuration(corpus, tmp_path / "two", input=pattern, executor={"workers": 7})).run_id == first


@pytest.mark.parametrize(
    "key", ["domains", "seed", "sample_size", "heldout_fraction", "max_bad_fraction", "shard_size", "near_duplicate_threshold"]
)
def test_run_id_follows_every_key_that_determines_content(corpus: Path, tmp_path: Path, key: str) -> None:
    values = {"heldout_fraction": 0.05, "max_bad_fraction": 0.05, "shard_size": 2**21, "near_duplicate_threshold": 0.7}
    value = values.get(key, 5)
    plain = make_plan(configuration(corpus, tmp_path / "out"))
    assert make_plan(configuration(corpus, tmp_path / "out", **{key: value})).run_id != plain.run_id


def test_encoder_whose_library_is_not_installed_says_what_to_install(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        ConfigurationError, match=r"sentence_transformers, which is not installed: .*encoder: lexical needs neither"
    ):
        make_plan(configuration(corpus, tmp_path / "out", encoder={"model": str(tiny_model)}))
    make_plan(configuration(corpus, tmp_path / "out"))


def test_run_id_follows_the_models_and_the_tokenizers_content_not_their_place(
    corpus: Path, tmp_path: Path, tiny_model: Path
) -> None:
    def run_id(model: Path) -> str:
        keys = {"encoder": {"model": str(model)}, "tokenizer": str(model / "tokenizer.json")}
        return make_plan(configuration(corpus, tmp_path / "out", **keys)).run_id

    moved = copied(tiny_model, tmp_path / "moved")
    assert run_id(moved) == run_id(tiny_model)
    change(moved / "tokenizer.json", added_tokens=[])
    assert run_id(moved) != run_id(tiny_model)


def test_run_id_follows_content_names_and_software(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_id() -> str:
        return make_plan(configuration(corpus, tmp_path / "out")).run_id

    seen = [run_id()]
    monkeypatch.setattr("lmsplit.partition.planning.software", lambda configuration: software(configuration) | {"numpy": "0"})
    seen.append(run_id())
    (corpus / "b.parquet").rename(corpus / "c.parquet")
    seen.append(run_id())
    with (corpus / "a.jsonl").open("a") as stream:
        stream.write(" ")
    seen.append(run_id())
    assert len(set(seen)) == 4


def test_plan_writes_nothing_and_counts_what_it_reads(corpus: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    plan = make_plan(configuration(corpus, tmp_path / "out"), seen.append)
    assert sum(seen) == sum(path.stat().st_size for path in corpus.iterdir())
    assert plan.corpus.estimated_documents == 40
    assert not (tmp_path / "out").exists()


def test_configuration_is_read_back_from_the_plan(corpus: Path, tmp_path: Path) -> None:
    asked = configuration(corpus, tmp_path / "out", seed=3, sample_size=77)
    plan = make_plan(asked)
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    assert Planned(run).configuration == asked
    assert sum(batch.num_records for batch in Planned(run).read(0)) == 40


def test_changed_file_is_refused_before_a_record_is_read(corpus: Path, tmp_path: Path) -> None:
    plan = make_plan(configuration(corpus, tmp_path / "out"))
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    os.utime(corpus / "b.parquet", (0, 0))
    with pytest.raises(InputError, match=r"b.parquet changed after it was planned: run the same command again to plan it anew"):
        next(Planned(run).read(0))


def test_file_that_is_gone_is_named(corpus: Path, tmp_path: Path) -> None:
    plan = make_plan(configuration(corpus, tmp_path / "out"))
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    (corpus / "b.parquet").unlink()
    with pytest.raises(InputError, match=r"b.parquet cannot be read any more \(No such file or directory\): restore it"):
        list(Planned(run).read(0))


def test_input_that_holds_the_output_is_refused(corpus: Path) -> None:
    output = corpus / "manifest"
    write(output / "data" / "d00000" / "part-00000.jsonl", topical(5))
    with pytest.raises(ConfigurationError, match=r"lies in the output .* choose an output outside the input"):
        make_plan(configuration(corpus, output, input=str(corpus)))


def test_file_that_changes_while_it_is_planned_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl changed while it was planned"):
        make_plan(configuration(corpus, tmp_path / "out"), lambda num_bytes: os.utime(corpus / "a.jsonl", (0, num_bytes)))
