"""An export's output: whole under its name or not there, never over anything, never among the manifest's own files."""

import os
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.export import chosen_domains, new_directory, new_file
from lmsplit.manifests.reader import Manifest


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_chosen_domains_are_in_the_order_of_the_manifest_each_once(golden_path: Path) -> None:
    """Whatever order they are named in."""
    manifest = Manifest.open(golden_path)
    names = [domain.domain for domain in chosen_domains(manifest, ["d00002", "d00000", "d00002"])]
    assert names == ["d00000", "d00002"]
    assert chosen_domains(manifest, []) == manifest.domains


def test_chosen_domains_refuse_an_unknown_one(golden_path: Path) -> None:
    """With the reader's own error."""
    with pytest.raises(ManifestError, match="has no domain 'd00009': it has d00000 to d00002"):
        chosen_domains(Manifest.open(golden_path), ["d00000", "d00009"])


def test_new_file_is_not_there_before_its_end(golden_path: Path, tmp_path: Path) -> None:
    """What is written meanwhile has a hidden name."""
    with new_file(Manifest.open(golden_path), tmp_path / "out") as path:
        path.write_text("half")
        assert not (tmp_path / "out").exists()
        assert visible(tmp_path)[0].startswith(".out.")
    assert visible(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [new_file, new_directory])
def test_failed_export_leaves_nothing(golden_path: Path, tmp_path: Path, kind) -> None:
    """Neither under its name nor under the hidden one."""

    def fail() -> None:
        with kind(Manifest.open(golden_path), tmp_path / "out") as path:
            (path if kind is new_file else path / "inside").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert visible(tmp_path) == []


@pytest.mark.parametrize("kind", [new_file, new_directory])
@pytest.mark.parametrize("before", ["file", "directory", "dangling link"])
def test_export_never_overwrites(golden_path: Path, tmp_path: Path, kind, before: str) -> None:
    """Neither a file, nor an empty directory, nor a link to nowhere."""
    output = tmp_path / "out"
    makers = {"file": output.touch, "directory": output.mkdir, "dangling link": lambda: output.symlink_to("nowhere")}
    makers[before]()
    with pytest.raises(ConfigurationError, match=r"out exists, and is not overwritten: remove it, or choose another"):
        kind(Manifest.open(golden_path), output).__enter__()
    assert visible(tmp_path) == ["out"]


def test_new_file_refuses_what_came_meanwhile(golden_path: Path, tmp_path: Path) -> None:
    """The other's file stays."""
    output = tmp_path / "out"

    def write() -> None:
        with new_file(Manifest.open(golden_path), output) as path:
            path.write_text("ours")
            output.write_text("theirs")

    with pytest.raises(ConfigurationError, match="exists"):
        write()
    assert output.read_text() == "theirs"
    assert visible(tmp_path) == ["out"]


def test_new_directory_refuses_what_came_meanwhile(golden_path: Path, tmp_path: Path) -> None:
    """An empty directory, too, which a rename would replace."""
    output = tmp_path / "out"

    def write() -> None:
        with new_directory(Manifest.open(golden_path), output) as path:
            (path / "inside").touch()
            output.mkdir()

    with pytest.raises(ConfigurationError, match="exists"):
        write()
    assert visible(output) == []


def test_new_file_needs_no_hard_links(golden_path: Path, tmp_path: Path, monkeypatch) -> None:
    """Where the file system has none, it is renamed."""

    def refuse(*names) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with new_file(Manifest.open(golden_path), tmp_path / "out") as path:
        path.write_text("whole")
    assert (tmp_path / "out").read_text() == "whole"


@pytest.mark.parametrize("place", ["data/out", "commits/out", "README.md/out", "_work/out"])
def test_export_stays_out_of_the_folders_of_the_manifest(copy_path: Path, place: str) -> None:
    """Verify would call it untracked."""
    (copy_path / place).parent.mkdir(exist_ok=True) if "README" not in place else None
    with pytest.raises(ConfigurationError, match=r"is not a directory|holds only what its commits name"):
        new_file(Manifest.open(copy_path), copy_path / place).__enter__()


def test_export_needs_a_directory(golden_path: Path, tmp_path: Path) -> None:
    """One that is misspelt is not made."""
    with pytest.raises(ConfigurationError, match=r"absent is not a directory: make it, or choose another output"):
        new_file(Manifest.open(golden_path), tmp_path / "absent" / "out").__enter__()


def test_export_takes_a_path_relative_to_where_it_runs(golden_path: Path, tmp_path: Path, monkeypatch) -> None:
    """As a command line gives it."""
    manifest = Manifest.open(golden_path)
    monkeypatch.chdir(tmp_path)
    with new_file(manifest, Path("out")) as path:
        path.write_text("x")
    assert visible(tmp_path) == ["out"]
