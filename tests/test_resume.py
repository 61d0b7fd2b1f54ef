"""Checkpoints of killed runs: found again by a run of the same, dropped when nobody came for them."""

import os
import time

from filelock import FileLock
from pipeline import write_yaml

from stages.support.params import DeclaredParams
from stages.support.resume import resumable


def test_what_nobody_went_on_with_for_a_month_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("")
    write_yaml(tmp_path / "dvc.yaml", {"stages": {"finetune": {"deps": ["code.py"]}}})
    of_run = "finetune", DeclaredParams("finetune", "", {"seed": 0}), DeclaredParams("finetune", "", {})
    killed = None
    try:
        with resumable(*of_run) as killed:
            (killed / "checkpoint-1").mkdir()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    folder = killed.parent
    for name in ("abandoned", "held", "recent"):
        (folder / name / "checkpoint-1").mkdir(parents=True)
        (folder / f"{name}.lock").touch()
    (folder / "succeeded.lock").touch()
    for path in folder.iterdir():
        if path.stem != "recent":
            os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    with FileLock(folder / "held.lock"), resumable(*of_run) as again:
        assert (again / "checkpoint-1").exists(), "an old one too, where its run goes on"
        left = {path.name for path in folder.iterdir()}
    assert left == {killed.name, f"{killed.name}.lock", "held", "held.lock", "recent", "recent.lock"}
