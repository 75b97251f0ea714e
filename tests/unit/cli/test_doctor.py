"""`cmrfed doctor` on this machine, with made-up times."""

import json

from typer.testing import CliRunner

from cmrfed.cli.main import app


def call(*words: str) -> str:
    result = CliRunner().invoke(app, ["doctor", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_machine_is_described_in_lines(tmp_path) -> None:
    out = call(str(tmp_path), "--no-times")
    assert "✓ software: Python 3." in out
    assert "device: CPU" in out or "GiB; networks compute in" in out
    assert "recipe" not in out


def test_times_are_those_of_the_recipes_that_were_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("cmrfed.sweep.estimate.run_seconds", lambda experiment, _: 61.0 if experiment.name else 0)
    found = {line["name"]: line for line in json.loads(call(str(tmp_path), "--recipe", "demo", "--json"))}
    assert found["recipe demo"]["text"].startswith("about 1 min 1 s on ")
    assert found["times"]["text"].startswith("Times are estimates")
