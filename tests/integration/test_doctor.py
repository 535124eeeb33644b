"""`protea doctor`: what is absent or broken is named, with the command that repairs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protea.cli import doctor
from protea.cli.app import app


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {c["name"]: c for c in json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["checks"]}


def test_a_whole_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    found = checks(capsys)
    assert found["torch"]["state"] == "ok" and found["python"]["state"] == "ok" and found["device"]["state"] == "ok"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_an_absent_extra_is_no_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "track", ("surely_not_installed",))
    found = checks(capsys)["surely_not_installed (track)"]
    assert found["state"] == "absent" and found["repair"] == "pip install 'protea[track]'"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_a_broken_package_is_named_and_takes_nothing_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("raise OSError('libmissing.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(doctor.EXTRAS, "track", ("broken_extra",))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 1
    assert (
        found["broken_extra (track)"]["state"] == "broken"
        and "libmissing.so" in found["broken_extra (track)"]["detail"]
    )
    assert found["torch"]["state"] == "ok"
    assert "broken_extra" not in sys.modules


def test_a_missing_core_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", ("surely_not_installed",))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "pip install --force-reinstall surely_not_installed" in done.stdout
