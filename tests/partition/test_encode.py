"""The sample's vectors: each encoded once, found again by unit, and computed nowhere but where they come out the same."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.placement import Floats
from lmsplit.partition import units
from lmsplit.partition.encode import Encode, build_encoder, sample_vectors
from lmsplit.partition.engine import Stage
from lmsplit.partition.ids import Settle
from lmsplit.partition.lexical import MAX_CHARACTERS
from lmsplit.partition.planning import Planned, make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample, pinned_encoder, sample_rows
from lmsplit.partition.scan import Scan
from tests.models import encoder_of
from tests.partition.corpora import configuration, topical, write


def do(stage: Stage) -> None:
    for task in range(stage.num_tasks):
        stage.do(task)


def sampled(corpus: Path, output: Path, **keys: Any) -> Run:
    """A run as it is before its sample is encoded, of several work units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MIN_UNIT_BYTES", 1500)
        plan = make_plan(configuration(corpus, output, **keys))
    run = Run(str(output), plan.run_id)
    run.start(plan.content, plan.here)
    for stage in (Scan(run), Settle(run), Sample(run)):
        do(stage)
    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents, every twentieth longer than any encoder reads."""
    directory = tmp_path_factory.mktemp("corpus")
    documents = topical(120)
    for row in documents[::20]:
        row["text"] = " ".join([row["text"]] * (MAX_CHARACTERS // 50))
    for part in range(4):
        write(directory / f"{part}.jsonl", documents[30 * part : 30 * part + 30])
    return directory


def wishes(model: Path, **keys: Any) -> dict[str, Any]:
    return {"encoder": {"model": str(model), "precision": "float32", "batch_size": 4, "device": "cpu"} | keys, "sample_size": 30}


def assert_pairs(found: tuple[pl.DataFrame, Floats], keys: pl.DataFrame, vectors_ND: Floats) -> None:
    assert found[0].rows() == keys.rows()
    assert found[1].tobytes() == vectors_ND.tobytes()


@pytest.mark.parametrize("chunk", [1, 3, 8, 512])
def test_vectors_of_a_unit_are_its_part_of_the_whole(
    tiny_model: Path, corpus: Path, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsplit.partition.sample.CHUNK_DOCUMENTS", chunk)
    run = sampled(corpus, tmp_path / "out", **wishes(tiny_model))
    rows = sample_rows(run)
    assert len(rows) == 30
    assert Encode(run).num_tasks == -(-30 // chunk)
    do(Encode(run))
    keys, vectors_ND = sample_vectors(run)
    assert keys.rows() == rows.select("unit", "ordinal").rows() == sorted(keys.rows())
    num_units = Planned(run).num_units
    assert 1 < keys["unit"].n_unique() <= num_units
    for unit in range(-1, num_units + 1):
        own = (keys["unit"] == unit).to_numpy()
        assert_pairs(sample_vectors(run, unit), keys.filter(own), vectors_ND[own])


def test_chunks_end_inside_units_and_between_them(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsplit.partition.sample.CHUNK_DOCUMENTS", 3)
    run = sampled(corpus, tmp_path / "out", **wishes(tiny_model))
    unit = sample_rows(run)["unit"].to_list()
    torn = {unit[start - 1] == unit[start] for start in range(3, len(unit), 3)}
    assert torn == {True, False}  # or the test above would show less than it says
    assert run.receipt("sample", 0)["first_units"] == unit[::3]


def test_vectors_are_those_of_the_whole_texts(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run = sampled(corpus, tmp_path / "out", **wishes(tiny_model))
    do(Encode(run))
    texts = {
        (unit, ordinal): text
        for unit in range(Planned(run).num_units)
        for ordinal, text in enumerate(text for batch in Planned(run).read(unit) for text in batch.documents["text"].to_pylist())
    }
    keys, vectors_ND = sample_vectors(run)
    sample = [texts[key] for key in keys.rows()]
    assert max(map(len, sample)) > max(len(text) for text in sample_rows(run)["text"])  # the scan kept less than the whole
    assert vectors_ND.tobytes() == encoder_of(tiny_model).encode(sample).tobytes()


def test_encoder_that_is_fitted_has_nothing_to_encode(corpus: Path, tmp_path: Path) -> None:
    run = sampled(corpus, tmp_path / "out", sample_size=50)
    assert pinned_encoder(run) is None
    assert Encode(run).num_tasks == 0
    for unit in (None, 0):
        keys, vectors_ND = sample_vectors(run, unit)
        assert (keys.schema, len(keys), vectors_ND.shape) == (pl.Schema({"unit": pl.Int64, "ordinal": pl.Int64}), 0, (0, 0))


def test_machine_that_computes_another_probe_encodes_nothing(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sampled(corpus, tmp_path / "out", **wishes(tiny_model))
    description, arrays = pinned_encoder(run) or ({}, {})
    build_encoder(run, description, arrays)
    arrays["probe_PD"][0, 0] = np.nextafter(arrays["probe_PD"][0, 0], np.float32(1))
    monkeypatch.setattr("lmsplit.partition.encode.pinned_encoder", lambda run: (description, arrays))
    with pytest.raises(ConfigurationError, match=r"this machine computes other vectors than those pinned .* Go on where the run"):
        Encode(run).do(0)
    assert run.done("encode") == {}


def test_chunks_share_one_loaded_encoder(tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.partition.sample.CHUNK_DOCUMENTS", 8)
    run = sampled(corpus, tmp_path / "out", **wishes(tiny_model))
    built = []
    monkeypatch.setattr("lmsplit.partition.encode.build_encoder", lambda *given: built.append(given) or build_encoder(*given))
    do(Encode(run))
    assert len(built) == 1
