"""What run.json says of the plugins that a run loaded."""

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import read_json
from cmrfed.core.settings.registry import Registry
from cmrfed.pipeline.files.record import FILE, RecordWriter, read_run
from cmrfed.report.html import write_report
from tests.plugin_world import install

EXPERIMENT = resolve({"name": "small", "data": {"phantom": {}}})
HUES = Registry("cmrfed.hues", "hue", {"red": 1})


def test_plugins_are_recorded_when_they_are_loaded_and_stand_in_the_report(tmp_path, monkeypatch):
    install(tmp_path / "site", HUES.group, "hue-blue", {"blue": "hue_blue:BLUE", "navy": "hue_blue:BLUE"}, "BLUE = 7")
    monkeypatch.syspath_prepend(tmp_path / "site")
    run = tmp_path / "run"
    record = RecordWriter(run, EXPERIMENT)
    HUES.get("red")
    record.save()
    assert read_json(run / FILE)["plugins"] == [], "nothing was loaded yet"
    assert "hue-blue" not in write_report(run).read_text(encoding="utf-8")
    HUES.get("blue")
    record.save()
    entry = {"name": "hue-blue", "version": "1.2", "parts": ["cmrfed.hues:blue"]}
    assert read_json(run / FILE)["plugins"] == [entry]
    HUES.get("navy")
    record.save()
    assert read_json(run / FILE)["plugins"] == [entry | {"parts": ["cmrfed.hues:blue", "cmrfed.hues:navy"]}]
    page = write_report(run).read_text(encoding="utf-8")
    assert "CMRFed was extended by plugins: hue-blue 1.2 (hues: blue, hues: navy)." in page
    assert "<dt>Plugins</dt><dd>hue-blue 1.2 (hues: blue, hues: navy)</dd>" in page


def test_a_run_that_is_carried_on_with_another_version_names_both(tmp_path, monkeypatch):
    for folder, version in (("old", "1.2"), ("new", "1.3")):
        install(tmp_path / folder, HUES.group, "hue-green", {"green": "hue_green:GREEN"}, "GREEN = 7")
        metadata = tmp_path / folder / "hue_green-1.2.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.2", version), encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / folder)
            record = RecordWriter(tmp_path / "run", EXPERIMENT)
            HUES.get("green")
            record.save()
    assert [(entry.name, entry.version) for entry in read_run(tmp_path / "run").plugins] == [
        ("hue-green", "1.2"),
        ("hue-green", "1.3"),
    ]
