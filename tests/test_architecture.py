"""The houses and the arrows between them: partition → manifests ← train, and nothing else."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("manifests", "partition", "train")
FORBIDDEN = {"manifests": {"partition", "train"}, "partition": {"train"}, "train": {"partition"}}
HEAVY = ("torch", "faiss", "datatrove", "trl", "transformers", "sklearn", "scipy", "datasets")
SOURCES = [path for house in HOUSES for path in sorted((ROOT / house).rglob("*.py"))]
IDS = [path.relative_to(ROOT).as_posix() for path in SOURCES]

IMPORTS = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(",".join(sorted({module.partition(".")[0] for module in sys.modules})))
"""


def modules(house: str) -> list[str]:
    names = [path.relative_to(ROOT / house).with_suffix("").parts for path in sorted((ROOT / house).rglob("*.py"))]
    return [".".join(("lmsplit", house, *(part for part in parts if part != "__init__"))) for parts in names]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (level, full name) of everything a file imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "__import__", "import_module"}:
            yield from ((0, argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def house_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_every_house_is_looked_at():
    assert {house_of(path) for path in SOURCES} == set(HOUSES)
    assert len(SOURCES) > 30


@pytest.mark.parametrize("names", [["lmsplit.manifests"], modules("manifests")], ids=["package", "every module"])
def test_manifests_import_needs_the_base_install_only(names):
    done = subprocess.run([sys.executable, "-c", IMPORTS, ",".join(names)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.strip().split(","))
    assert "lmsplit" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_follow_the_arrows(path):
    for _, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] == "lmsplit":
            assert parts[1] not in FORBIDDEN[house_of(path)], f"{path} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_are_absolute(path):
    for level, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        assert level == 0, f"{path} imports {name} relatively: type checkers would see its classes twice"
        assert name.partition(".")[0] not in HOUSES, f"{path} imports {name}: say lmsplit.{name}"


def undocumented(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module"
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield f"{prefix}{node.name}"
                if isinstance(node, ast.ClassDef):
                    pending.append((f"{prefix}{node.name}.", node))


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_everything_public_is_documented(path):
    missing = list(undocumented(ast.parse(path.read_text(encoding="utf-8"))))
    assert not missing, f"{path}: no docstring on {', '.join(missing)}"


def longest_function(tree: ast.Module) -> int:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return max((node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno), default=0)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert longest_function(ast.parse(text)) <= 60


@pytest.fixture
def rival_directory(tmp_path: Path) -> Path:
    """A directory with a user's own files that are called as our folders are."""
    for house in HOUSES:
        (tmp_path / f"{house}.py").write_text("raise SystemExit('the wrong module was imported')\n")
    return tmp_path


def test_users_own_modules_break_no_import(rival_directory):
    names = "lmsplit.train, lmsplit.partition.pipeline, lmsplit.manifests.reader"
    done = subprocess.run(
        [sys.executable, "-c", f"import {names}"], cwd=rival_directory, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_users_own_modules_break_no_command(rival_directory):
    command = Path(sys.executable).parent / "lmsplit"
    golden = ROOT / "tests" / "golden" / "v1"
    done = subprocess.run([command, "show", golden, "--json"], cwd=rival_directory, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_users_own_modules_stay_the_users(rival_directory):
    done = subprocess.run(
        [sys.executable, "-c", "import train"], cwd=rival_directory, capture_output=True, text=True, check=False
    )
    assert "the wrong module was imported" in done.stderr
