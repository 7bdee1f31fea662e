"""Examples in the wild: the recipe is one, and scripts say which package they lack. ``make examples`` runs them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from qubo_compress.commands.call import call_of
from qubo_compress.commands.references import refuse_other_than_a_reference

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = {
    "image_classifier": ("timm", "torchvision"), "hugging_face_encoder": ("transformers",),
    "lightning_module": ("lightning",), "plain_loop": (),
}  # fmt: skip


def test_the_recipe_is_one() -> None:
    recipe = call_of(EXAMPLES / "recipes" / "example.yaml", {}).recipe
    assert recipe.budget.ratio == 8 and recipe.menu.bits == (2, 3, 4, 6, 8) and recipe.outputs.network is not None
    for reference in (recipe.model, recipe.data, recipe.validation, recipe.test):
        assert reference is not None
        refuse_other_than_a_reference(reference, "example.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_say_what_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = runpy.run_path(str(path))
    packages = PACKAGES[path.stem]
    if not packages:
        assert callable(found["main"])
        return
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    found["main"]()
    said = capsys.readouterr().out
    assert said.startswith("skipped: ") and "run: pip install" in said and said.count("\n") == 1


def test_a_package_built_for_another_torch_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchvision raises RuntimeError on import if it does not fit torch, and so does timm, which needs it."""
    for package in PACKAGES["image_classifier"]:
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(str(EXAMPLES / "image_classifier.py"))["main"]()
    told = capsys.readouterr()
    assert told.out.startswith("skipped: ") and "torchvision::nms" in told.err
