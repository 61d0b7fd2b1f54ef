"""Imports: nothing heavy is loaded early, and every public name is available."""

import inspect
import subprocess
import sys

import pytest

import sglp

HEAVY = {"torch", "numpy", "tqdm", "safetensors"}


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_sglp_imports_nothing_heavy():
    assert not HEAVY & modules_after("import sglp; dir(sglp)")


@pytest.mark.parametrize("module", ["segmentation", "budget", "plan", "errors", "scores", "choices", "files"])
def test_modules_without_tensors_import_no_torch(module):
    assert "torch" not in modules_after(f"import sglp.{module}")


@pytest.mark.parametrize("name", ["fisher_segmentation", "allocate_budget", "Plan", "SGLPError"])
def test_names_without_tensors_import_no_torch(name):
    modules = modules_after(f"from sglp import {name}")
    assert "torch" not in modules


@pytest.mark.parametrize("name", sglp.__all__)
def test_every_public_name_exists_and_is_documented(name):
    public = getattr(sglp, name)
    assert public.__name__ == name
    assert len(inspect.getdoc(public).split()) > 3
    assert name in dir(sglp)


def test_unknown_names_raise_as_in_any_module():
    with pytest.raises(AttributeError, match="module 'sglp' has no attribute 'prunes'"):
        sglp.prunes  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'prunes'"):
        exec("from sglp import prunes")


def test_every_error_is_an_sglp_error():
    from sglp import errors

    raised = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, Exception)]
    assert {e.__name__ for e in raised if not issubclass(e, sglp.SGLPError)} == {"DeadLayerWarning", "NotPlainWarning"}
