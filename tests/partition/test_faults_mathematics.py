"""Faults of the mathematics, through a whole run: vectors that are none, texts all alike, files that changed on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.lexical import LexicalEncoder
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.fit import Fit
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from tests.models import copied
from tests.partition.corpora import configuration, quarantined, write
from tests.partition.test_faults import FORMATS, GOOD, conserves, run


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_text_whose_vector_is_no_unit_vector_is_set_aside_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    for index, name in enumerate((*FORMATS, "d.parquet")):
        bad = {"id": name, "text": f"poison {GOOD[index]['text']}", "source": "s"}
        write(tmp_path / "in" / name, [*GOOD[15 * index : 15 * index + 15], bad])
    encode = LexicalEncoder.encode

    def poisoned(self: LexicalEncoder, texts: list[str]) -> Any:
        """Encode, but for one coordinate, or for 0 all of them, where a text is poison."""
        vectors_ND = encode(self, texts)
        poison = [text.startswith("poison") for text in texts]
        vectors_ND[poison, slice(None) if value == 0 else 1] = value
        return vectors_ND

    monkeypatch.setattr(LexicalEncoder, "encode", poisoned)
    commit = run(tmp_path / "in", max_bad_fraction=0.1, heldout_fraction=0)
    found = [(row["source_path"], row["source_row"], row["reason"]) for row in quarantined(tmp_path / "out")]
    assert found == [(name, 15, "zero_vector") for name in (*FORMATS, "d.parquet")]
    assert conserves(commit, 64)
    assert np.isfinite(Manifest.open(tmp_path / "out").rule().centroids_MD).all()
    assert Run(str(tmp_path / "out"), commit.body.run_id).receipt("fit", 0)["measures"]["sample_documents"] == 60


def test_identical_documents_in_one_domain_are_reported_by_the_gate(tmp_path: Path) -> None:
    write(tmp_path / "in" / "c.jsonl.zst", [{"text": "river water"}] * 50)
    (finding,) = run(tmp_path / "in", domains=1).body.gate.findings
    assert (finding.code, finding.where, finding.found) == ("collapsed", "d00000", "100%")
    assert finding.remedy.startswith("remove duplicates")


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_placement_rule_that_changed_after_the_fit_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    fit = Fit.do

    def tampered(self: Fit, task: int) -> None:
        """Fit, and change a digit of what was stored."""
        fit(self, task)
        (path,) = (tmp_path / "out" / "placement").glob(f"*.{suffix}")
        data = path.read_bytes()
        changed = data.replace(b'"max_characters":10000', b'"max_characters":10001') if suffix == "json" else data[:-1] + b"\1"
        assert changed != data
        path.unlink()
        path.write_bytes(changed)

    monkeypatch.setattr(Fit, "do", tampered)
    with pytest.raises(LmsplitError, match=r"placement/\w+\.\w+.* should have sha256 \w{64}, found \w{64}"):
        run(tmp_path / "in")
    assert not (tmp_path / "out" / "commits").exists()


def test_encoder_whose_weights_changed_after_the_plan_stops_the_run(tmp_path: Path, tiny_model: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    model = copied(tiny_model, tmp_path / "model")
    asked = configuration(tmp_path / "in", tmp_path / "out", encoder={"model": str(model)})
    plan = make_plan(asked)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(LmsplitError, match=r"sha256 \w{64}, planned was \w{64}: restore it, or run the same command again"):
        partition(asked, plan)
    assert not (tmp_path / "out" / "commits").exists()
