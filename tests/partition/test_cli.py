"""The partition commands as a user types them: output, exit codes, and errors without a traceback."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from lmsplit.manifests.cli import main
from tests.partition.corpora import topical, tree, write


class Said(NamedTuple):
    code: object
    out: str
    err: str


class Lmsplit:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return Said(ended.value.code, *self._capsys.readouterr())


@pytest.fixture
def lmsplit(capsys: pytest.CaptureFixture[str]) -> Lmsplit:
    return Lmsplit(capsys)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration over 60 documents; the output is `out` beside it."""
    write(tmp_path / "in" / "a.jsonl", topical(60))
    return write_config(tmp_path)


def write_config(directory: Path, **keys: object) -> Path:
    values = {"input": str(directory / "in"), "output": str(directory / "out"), "domains": 3}
    values |= {"encoder": "lexical", "executor": {"workers": 0}}
    path = directory / "partition.yaml"
    path.write_text(yaml.safe_dump(values | keys))
    return path


def test_partition_prints_the_manifest_and_then_nothing_is_left_to_do(lmsplit: Lmsplit, config: Path) -> None:
    said = lmsplit("partition", config)
    assert (said.code, "60 documents" in said.out) == (0, True)
    assert all(json.loads(line)["event"] for line in said.err.splitlines())
    before = tree(config.parent / "out")
    again = lmsplit("partition", config)
    assert (again.code, again.out, again.err) == (0, said.out, "")
    assert tree(config.parent / "out") == before


def test_json_prints_one_object_and_nothing_else(lmsplit: Lmsplit, config: Path) -> None:
    output = config.parent / "out"
    done = lmsplit("partition", config, "--json")
    commit = json.loads((output / "commits" / "00000.json").read_text())
    expected = {"run_id": commit["body"]["run_id"], "commit": commit["body_sha256"]}
    assert json.loads(done.out) == expected | {"manifest": str(output)}
    assert json.loads(lmsplit("publish", output, "--json").out) == expected
    status = json.loads(lmsplit("status", output, "--json").out)
    assert (status["run_id"], status["published"]) == (expected["run_id"], True)
    assert [row["tasks_done"] for row in status["stages"]] == [row["tasks"] for row in status["stages"]]
    assert json.loads(lmsplit("gc", output, "--json").out)["runs"] == 1


def test_dry_run_prints_the_plan_and_writes_nothing(lmsplit: Lmsplit, config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    said = lmsplit("partition", config, "--dry-run", "--json")
    plan = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert (plan["files"], plan["units"], plan["estimated_documents"], plan["sample_size"]) == (1, 1, 60, 60)
    assert plan["bytes"] == (config.parent / "in" / "a.jsonl").stat().st_size
    assert f"run_id  {plan['run_id']}" in lmsplit("partition", config, "--dry-run").out
    assert sorted(config.parent.rglob("*")) == before
    assert json.loads(lmsplit("partition", config, "--json").out)["run_id"] == plan["run_id"]


def test_resolved_configuration_is_written_beside_the_work_and_asks_for_the_same_run(lmsplit: Lmsplit, config: Path) -> None:
    lmsplit("partition", config, "--set", "seed=3")
    (written,) = (config.parent / "out" / "_work").glob("*/configuration.yaml")
    resolved = yaml.safe_load(written.read_text())
    assert (resolved["seed"], resolved["domains"], resolved["max_bad_fraction"]) == (3, 3, 0.001)
    copy = config.with_name("resolved.yaml")
    copy.write_text(yaml.safe_dump(resolved))
    before = tree(config.parent / "out")
    assert lmsplit("partition", copy).code == 0
    assert tree(config.parent / "out") == before


def test_failed_check_exits_1(lmsplit: Lmsplit, config: Path) -> None:
    lmsplit("partition", config)
    assert lmsplit("verify", config.parent / "out", "--deep").code == 0
    next((config.parent / "out").glob("data/*/*")).unlink()
    said = lmsplit("verify", config.parent / "out", "--json")
    assert said.code == 1
    assert json.loads(said.out)["findings"][0]["code"] == "file_missing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("partition", "nowhere.yaml"), "lmsplit: cannot read the configuration nowhere.yaml"),
        (("partition", "CONFIG", "--set", "domain=4"), "unknown key 'domain': did you mean 'domains'?"),
        (("partition", "CONFIG", "--set", "encoder=cascade"), "comes with a later release"),
        (("partition", "CONFIG", "--set", "encoder={model: nowhere}"), "encoder 'nowhere' is no directory, and no hub id"),
        (("partition", "CONFIG", "--set", "domains=1000"), "set domains to"),
        (("partition", "CONFIG", "--set", "output=ftp://host/x"), "ftp:// is not supported; expected a local path, or file://"),
        (("partition", "CONFIG", "--set", "output=hf://datasets/a/b"), "hf:// is for input only: write to a local directory"),
        (("partition", "CONFIG", "--set", "output=s3://key:word@bucket/x"), "s3://…/x: a URL must not hold credentials"),
        (("partition", "CONFIG", "--refit", "--suggest"), "--suggest reports and --refit publishes: give one of them"),
        (("partition", "CONFIG", "--dry"), "No such option: --dry"),
        (("partition",), "Missing argument 'CONFIG.yaml'"),
        (("partitoin", "CONFIG"), "No such command 'partitoin'"),
        (("status", "IN"), "expected one run under _work/, found none"),
        (("status", "IN/_work/0123456789abcdef"), "expected one run under _work/, found none"),
        (("publish", "IN"), "expected one run under _work/, found none"),
    ],
)
def test_bad_usage_or_configuration_exits_2(lmsplit: Lmsplit, config: Path, arguments: tuple[str, ...], message: str) -> None:
    names = {"CONFIG": str(config), "IN": str(config.parent / "in")}
    said = lmsplit(*(names.get(a, a.replace("IN/", f"{names['IN']}/")) for a in arguments))
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"id"', "1 of 2 records are bad (malformed_json 1), more than max_bad_fraction: 0.001"),
        (b'{"id": "x", "text": "a b"}\n{"id": "x", "text": "c d"}', "1 documents repeat an id: 'x' stands in a.jsonl row 0"),
        (b"", "the input has 0 usable documents"),
    ],
)
def test_bad_input_exits_3(lmsplit: Lmsplit, config: Path, content: bytes, message: str) -> None:
    (config.parent / "in" / "a.jsonl").write_bytes(content)
    said = lmsplit("partition", config)
    assert (said.code, said.out) == (3, "")
    assert said.err.splitlines()[-1].startswith("lmsplit: ")
    assert message in said.err


def test_input_that_matches_nothing_exits_3(lmsplit: Lmsplit, config: Path) -> None:
    said = lmsplit("partition", config, "--set", f"input={config.parent}/none*.jsonl")
    assert (said.code, "matches no file" in said.err) == (3, True)


def test_other_configuration_on_the_same_output_exits_4(lmsplit: Lmsplit, config: Path) -> None:
    lmsplit("partition", config)
    before = tree(config.parent / "out")
    said = lmsplit("partition", config, "--set", "seed=1")
    assert (said.code, said.out) == (4, "")
    assert "choose another output, or remove that manifest" in said.err
    assert tree(config.parent / "out") == before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_that_cannot_be_a_directory_is_no_traceback(lmsplit: Lmsplit, config: Path, place: str) -> None:
    (config.parent / "file").touch()
    said = lmsplit("partition", config, "--set", f"output={config.parent / place}")
    assert (said.code, said.out) == (1, "")
    assert "Not a directory" in said.err


@pytest.mark.parametrize("command", ["partition", "publish", "status", "gc"])
def test_help_names_the_command_and_its_argument(lmsplit: Lmsplit, command: str) -> None:
    said = lmsplit(command, "--help")
    assert said.code == 0
    assert f"Usage: lmsplit {command} [OPTIONS]" in said.out
    assert {"partition": "CONFIG.yaml", "publish": "RUN", "status": "RUN", "gc": "M"}[command] in said.out


def test_help_of_partition_names_its_options(lmsplit: Lmsplit) -> None:
    said = lmsplit("partition", "--help")
    assert all(option in said.out for option in ("--set", "--dry-run", "--suggest", "--refit", "--json"))


def test_status_and_publish_of_an_unfinished_run(lmsplit: Lmsplit, config: Path) -> None:
    output = config.parent / "out"
    lmsplit("partition", config)
    whole = tree(output)
    shutil.rmtree(output / "commits")
    assert json.loads(lmsplit("status", output, "--json").out)["published"] is False
    assert "not published yet: the same partition command goes on with it" in " ".join(lmsplit("status", output).out.split())
    (run,) = (output / "_work").glob("*/plan.json")
    assert lmsplit("publish", run.parent).code == 0
    assert tree(output) == whole
    shutil.rmtree(output / "commits")
    next(run.parent.glob("place/*.json")).unlink()
    said = lmsplit("publish", output)
    assert (said.code, said.out) == (1, "")
    assert "task 0 of stage place is not done: run the same partition command again" in said.err


def test_gc_removes_work_files_of_the_published_run_only(lmsplit: Lmsplit, config: Path) -> None:
    output = config.parent / "out"
    lmsplit("partition", config)
    published = tree(output)
    (left,) = [path.parent for path in (output / "_work").glob("*/plan.json")]
    shutil.copytree(left, output / "_work" / ("0" * 16))
    (output / "_work" / "spool" / "half").write_bytes(b"left by a killed task")
    assert lmsplit("gc", output).code == 0
    assert not left.exists()
    assert (output / "_work" / "spool" / "half").exists()  # the unfinished run may be writing it
    shutil.rmtree(output / "_work" / ("0" * 16))
    assert json.loads(lmsplit("gc", output, "--json").out)["freed_bytes"] == 21
    assert tree(output) == published
    assert lmsplit("partition", config).code == 0
    assert lmsplit("verify", output, "--deep").code == 0


def test_gc_of_a_directory_that_is_no_manifest_exits_1(lmsplit: Lmsplit, tmp_path: Path) -> None:
    said = lmsplit("gc", tmp_path)
    assert (said.code, "is not a manifest" in said.err) == (1, True)
