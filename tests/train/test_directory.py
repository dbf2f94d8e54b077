from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConflictError
from lmsplit.train.directory import whole_directory, whole_file, write_whole


def test_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "models" / "seed"
    with whole_directory(target) as partial:
        (partial / "weights").write_text("w")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert [path.name for path in target.parent.iterdir()] == ["seed"]


def test_directory_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    def build() -> None:
        with whole_directory(tmp_path / "seed") as partial:
            (partial / "weights").write_text("w")
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        build()
    assert list(tmp_path.iterdir()) == []


def test_directory_is_built_anew_after_a_kill(tmp_path: Path) -> None:
    stale = tmp_path / ".seed.partial"
    (stale / "folder").mkdir(parents=True)
    (stale / "half").write_text("h")
    with whole_directory(tmp_path / "seed") as partial:
        (partial / "weights").write_text("w")
    assert [path.name for path in (tmp_path / "seed").iterdir()] == ["weights"]


def test_directory_goes_on_with_what_a_killed_build_left(tmp_path: Path) -> None:
    stale = tmp_path / ".seed.partial"
    (stale / "folder").mkdir(parents=True)
    (stale / "folder" / "first").write_text("f")
    with whole_directory(tmp_path / "seed", resume=True) as partial:
        assert (partial / "folder" / "first").read_text() == "f"
        (partial / "second").write_text("s")
    assert sorted(path.name for path in (tmp_path / "seed").rglob("*")) == ["first", "folder", "second"]
    assert [path.name for path in tmp_path.iterdir()] == ["seed"]


def test_directory_that_resumes_is_left_when_the_block_fails(tmp_path: Path) -> None:
    def build(*, resume: bool) -> None:
        with whole_directory(tmp_path / "seed", resume=resume) as partial:
            (partial / "weights").write_text("w")
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        build(resume=True)
    assert (tmp_path / ".seed.partial" / "weights").read_text() == "w"
    assert not (tmp_path / "seed").exists()
    with pytest.raises(RuntimeError, match="no luck"):
        build(resume=False)
    assert list(tmp_path.iterdir()) == []


def test_directory_is_refused_to_a_second_builder(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "seed") as partial:
        (partial / "weights").write_text("first")
        with (
            pytest.raises(ConflictError, match="seed is being built by another process"),
            whole_directory(tmp_path / "seed"),
        ):
            pass
    assert (tmp_path / "seed" / "weights").read_text() == "first"


def test_directory_is_not_replaced_once_published(tmp_path: Path) -> None:
    def build() -> None:
        with whole_directory(tmp_path / "seed"):
            (tmp_path / "seed").mkdir()
            (tmp_path / "seed" / "weights").write_text("theirs")

    with pytest.raises(ConflictError, match="published by another process"):
        build()
    assert [path.name for path in tmp_path.iterdir()] == ["seed"]
    assert (tmp_path / "seed" / "weights").read_text() == "theirs"


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "config.yaml", "one")
    write_whole(tmp_path / "deep" / "config.yaml", "two")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["config.yaml"]
    assert (tmp_path / "deep" / "config.yaml").read_text() == "two"


def test_file_appears_whole_and_after_a_failure_not_at_all(tmp_path: Path) -> None:
    def write(*, fail: bool) -> None:
        with whole_file(tmp_path / "tokens") as partial:
            partial.write_text("half" if fail else "whole")
            assert not (tmp_path / "tokens").exists()
            if fail:
                raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        write(fail=True)
    assert not (tmp_path / "tokens").exists()
    write(fail=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    assert (tmp_path / "tokens").read_text() == "whole"
