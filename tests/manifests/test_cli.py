"""The command line: exit codes, one JSON object on standard output, and what a base install says of the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmsplit.manifests.cli import main

BASE_INSTALL = """
import sys

EXTRAS = {extras!r}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from lmsplit.manifests.cli import main
main(sys.argv[1:])
"""
PARTITION = ("datatrove", "orjson", "sklearn", "threadpoolctl", "zstandard")
TRAIN = ("accelerate", "datasets", "tokenizers", "torch", "transformers", "trl")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code or 0
    else:
        code = 0
    out, err = capsys.readouterr()
    return code, out, err


def run_base_install(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    program = BASE_INSTALL.format(extras=PARTITION + TRAIN)
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_show_prints_one_json_object(capsys, golden_path):
    code, out, err = run(capsys, "show", golden_path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["documents"] == 32


def test_show_prints_a_table(capsys, golden_path):
    code, out, err = run(capsys, "show", f"{golden_path}@0")
    assert (code, err) == (0, "")
    assert "boat, wind, sail" in out


def test_show_names_what_is_no_manifest(capsys, tmp_path):
    code, out, err = run(capsys, "show", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"lmsplit: {tmp_path} is not a manifest")


@pytest.mark.parametrize("deep", [[], ["--deep"], ["--deep", "--sample", "3"]])
def test_verify_ends_with_zero_when_all_is_well(capsys, golden_path, deep):
    code, out, err = run(capsys, "verify", golden_path, "--json", *deep)
    assert (code, json.loads(out), err) == (0, {"ok": True, "findings": []}, "")


def test_verify_ends_with_one_and_prints_what_is_wrong(capsys, copy_path, forger):
    path = forger.path("plans")
    (copy_path / path).unlink()
    code, out, err = run(capsys, "verify", copy_path, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert found["ok"] is False
    assert [set(finding) for finding in found["findings"]] == [{"code", "where", "expected", "found", "remedy"}]
    assert (found["findings"][0]["code"], found["findings"][0]["where"]) == ("file_missing", path)
    code, out, _ = run(capsys, "verify", copy_path)
    assert code == 1
    assert "file_missing" in out


def test_verify_prints_json_for_a_damaged_commit(capsys, copy_path):
    (copy_path / "commits" / "00000.json").write_text("{")
    code, out, _ = run(capsys, "verify", copy_path, "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["where"] == "commits/00000.json"


@pytest.mark.parametrize("location", ["absent", "absent@7"])
def test_verify_names_what_is_no_manifest(capsys, tmp_path, location):
    code, out, err = run(capsys, "verify", tmp_path / location, "--json")
    assert (code, out) == (1, "")
    assert "is not a manifest" in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["show"], ["show", "a", "--nonsense"], ["verify", "a", "--sample", "-1"]])
def test_bad_usage_ends_with_two(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: lmsplit" in err


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["verify", "--help"]])
def test_help_is_there(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "Usage: lmsplit" in out


def test_help_lists_the_commands_of_every_package(capsys):
    _, out, _ = run(capsys, "--help")
    for command in ("partition", "publish", "status", "gc", "show", "verify", "train", "route"):
        assert f"  {command} " in out


def test_installed_command_verifies(golden_path):
    command = Path(sys.executable).parent / "lmsplit"
    done = subprocess.run([command, "verify", golden_path, "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)


def test_base_install_shows_and_verifies(golden_path):
    assert run_base_install("show", golden_path).returncode == 0
    done = run_base_install("verify", golden_path, "--deep", "--json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"ok": True, "findings": []}, "")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["partition", "c.yaml"], "partition"), (["status", "m"], "partition"), (["train", "c.yaml", "--all"], "train")],
)
def test_base_install_names_the_extra_to_install(tmp_path, arguments, extra):
    (tmp_path / "c.yaml").write_text("{manifest: m, output: o, model: 1m, seed_model: {tokens: 1000}, expert: {tokens: 1000}}")
    done = run_base_install(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pip install 'lmsplit[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_permission_is_told_without_a_traceback(capsys, copy_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(copy_path))

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, err = run(capsys, "show", copy_path)
    assert (code, out) == (1, "")
    assert "Permission denied" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "M", "book-00", "--recompute"],
        ["explain", "M", "--text", "wind in the sails"],
        ["diff", "M", "M"],
        ["report", "M", "--diff", "M", "-o", "report.html"],
        ["export", "M", "--to", "slim", "-o", "slim.parquet"],
        ["export", "M", "--to", "croissant", "-o", "croissant.json"],
        ["export", "M", "--to", "manifest", "--domain", "d00001", "-o", "handed"],
        ["verify", "M", "--deep", "--texts"],
    ],
)
def test_an_audit_needs_the_base_install_only(golden_path, tmp_path, arguments):
    done = run_base_install(*(str(golden_path) if each == "M" else each for each in arguments), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
