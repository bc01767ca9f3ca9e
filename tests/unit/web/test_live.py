"""The run's current state."""

import types

from recipe.web import live, shared


def test_what_is_drawn_is_not_older_than_its_version(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("old")

    def find_run():
        found = types.SimpleNamespace(folder=tmp_path, text=path.read_text())
        path.write_text("ended")  # while this run is looked at
        return found

    monkeypatch.setattr(shared, "find_run", find_run, raising=False)
    monkeypatch.setattr(live, "_drawn", {})
    monkeypatch.setattr(live, "_render", lambda view: [view.text])
    monkeypatch.setattr(live.run_view, "read_run", lambda run, is_running: run)
    monkeypatch.setattr(live.log, "training_folder", lambda run: None)
    assert live.run_status().blocks == ["ended"]
    assert live.run_status().blocks == ["ended"]
