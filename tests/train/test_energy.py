"""Energy is measured where it is asked for, and codecarbon is not touched where it is not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.energy import measured_energy


def test_block_that_is_not_measured_does_not_import_codecarbon() -> None:
    program = (
        "import sys\n"
        "from lmsplit.train.energy import measured_energy\n"
        "with measured_energy(False) as energy: pass\n"
        "assert energy.kwh is None\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'codecarbon']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_missing_codecarbon_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    message = r"codecarbon is not installed: pip install 'lmsplit\[energy\]'"
    with pytest.raises(ConfigurationError, match=message), measured_energy(True):
        pytest.fail("the block ran")


def test_missing_codecarbon_is_no_matter_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: pytest.fail("looked for it"))
    with measured_energy(False) as energy:
        pass
    assert energy.kwh is None


def test_measured_block_has_used_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    with measured_energy(True) as energy:
        assert energy.kwh is None
        sum(range(1_000_000))
    assert energy.kwh is not None
    assert 0 < energy.kwh < 0.01
    assert not list(tmp_path.iterdir())


def test_energy_is_known_when_the_block_failed() -> None:
    pytest.importorskip("codecarbon")
    with pytest.raises(ZeroDivisionError), measured_energy(True) as energy:
        divmod(1, 0)
    assert energy.kwh is not None


def test_failure_of_codecarbon_does_not_lose_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    codecarbon = pytest.importorskip("codecarbon")
    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "stop", lambda _self: None)
    with measured_energy(True) as energy:
        pass
    assert energy.kwh is None
