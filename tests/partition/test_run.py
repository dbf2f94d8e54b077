"""Receipts: written last, the first one wins, and nothing else says what is done."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.partition.run import Run, describe, run_id
from tests.partition.corpora import folder

PLAN = {"files": ["a"], "seed": 0}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(str(tmp_path), run_id(PLAN))
    run.start(PLAN, {"root": "/somewhere"})
    return run


def finish(run: Run, task: int, value: int) -> None:
    """Finish a task that says `value`, with a piece that holds it."""
    with run.store.spool() as path:
        pq.write_table(pa.table({"value": [value]}), path)
        run.finish("stage", task, {"numbers": path}, {"documents": value})


def test_receipt_says_what_the_task_left(run: Run) -> None:
    finish(run, 3, 7)
    receipt = run.receipt("stage", 3)
    piece = receipt["pieces"]["numbers"]
    data = run.local(receipt, "numbers").read_bytes()
    assert (receipt["documents"], piece["rows"], piece["bytes"]) == (7, 1, len(data))
    assert piece["sha256"] == hashlib.sha256(data).hexdigest()
    assert run.table(receipt, "numbers").to_pylist() == [{"value": 7}]
    assert run.done("stage").keys() == {3}


def test_first_receipt_wins_and_the_other_piece_is_ignored(run: Run) -> None:
    finish(run, 0, 1)
    first = folder(run, "stage/00000.json").read_bytes()
    finish(run, 0, 2)
    assert folder(run, "stage/00000.json").read_bytes() == first
    assert run.table(run.receipt("stage", 0), "numbers").to_pylist() == [{"value": 1}]


def test_piece_without_a_receipt_is_not_done(run: Run) -> None:
    finish(run, 0, 1)
    folder(run, "stage/00000.json").unlink()
    assert run.done("stage") == {}
    with pytest.raises(LmsplitError, match="task 0 of stage stage is not done: run the same partition command again"):
        run.receipt("stage", 0)
    finish(run, 0, 1)
    assert len(list(folder(run, "stage").iterdir())) == 2


def test_receipts_come_in_the_order_of_the_tasks(run: Run) -> None:
    for task in (2, 0, 1):
        finish(run, task, task)
    assert [receipt["documents"] for receipt in run.receipts("stage", 3)] == [0, 1, 2]
    assert len(run.done("stage")) == 3
    assert run.done("other stage") == {}


def test_damaged_piece_is_noticed_when_it_is_read(run: Run) -> None:
    with run.store.spool() as path:
        pq.write_table(pa.table({"value": list(range(1000))}), path, compression="none", write_page_checksum=True)
        run.finish("stage", 0, {"numbers": path}, {})
    receipt = run.receipt("stage", 0)
    piece = run.local(receipt, "numbers")
    data = bytearray(piece.read_bytes())
    data[200] ^= 1
    piece.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        run.table(receipt, "numbers")


def test_start_again_keeps_the_plan_and_takes_the_new_place(run: Run) -> None:
    run.start(PLAN, {"root": "/elsewhere"})
    again = Run(run.output, run.run_id)
    assert (again.plan, again.here) == (PLAN, {"root": "/elsewhere"})


def test_run_id_is_a_digest_of_the_canonical_plan() -> None:
    canonical = json.dumps(PLAN, sort_keys=True, separators=(",", ":")).encode()
    assert run_id(PLAN) == hashlib.sha256(canonical).hexdigest()[:16]
    assert run_id(dict(reversed(PLAN.items()))) == run_id(PLAN)
    assert run_id(PLAN | {"seed": 1}) != run_id(PLAN)


def test_nothing_is_left_in_the_spool(run: Run) -> None:
    finish(run, 0, 1)

    def fail() -> None:
        with run.store.spool() as path:
            path.write_bytes(b"half")
            raise InputError("bad")

    with pytest.raises(InputError, match="bad"):
        fail()
    assert list((Path(run.output) / "_work" / "spool").iterdir()) == []


def test_describe_refuses_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"PAR1")
    with pytest.raises(pa.ArrowInvalid):
        describe(tmp_path / "half", "x.parquet", "0")
