"""Recipes: typed, with lines and nearest names in the errors, and harmless whatever they hold."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress import sensitivity
from qubo_compress.commands.arguments import menu_of
from qubo_compress.commands.call import call_of
from qubo_compress.commands.options import BEHAVIOUR, PANELS, said_by_options
from qubo_compress.commands.recipe import DEEPEST, LARGEST, Said, read_recipe
from qubo_compress.commands.settings import Recipe, sections, value_of
from qubo_compress.commands.settings import settings as all_settings
from qubo_compress.errors import CorruptArtifact, QuboCompressError, WrongUsage
from qubo_compress.exports.formats import FORMATS, RUNTIMES
from qubo_compress.menu import family_names
from qubo_compress.menu.menu import PRESETS
from qubo_compress.recovery.objectives import objectives
from tests.commands import reference

SETTINGS = {setting.key: setting for setting in all_settings()}
EXAMPLES: dict[tuple[str, type], Any] = {
    ("one", str): "text", ("one", int): 3, ("one", float): 2.5, ("one", bool): True, ("one", Path): Path("a/b"),
    ("list", str): ("a(b=1)", "c"), ("list", int): (2, 4), ("list", float): (0.0, 0.5),
    ("table", str): {"threads": 2, "first": "anneal", "share": 0.5, "roof": True},
}  # fmt: skip


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def nested(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        (found.setdefault(section, {}) if section else found)[name] = plain
    return found


def test_every_setting_is_read_from_a_recipe_and_from_its_option(tmp_path: Path) -> None:
    values = {key: EXAMPLES[setting.form, setting.kind] for key, setting in SETTINGS.items()}
    path = written(tmp_path, yaml.safe_dump(nested(values)))
    call = call_of(path, {})
    assert {key: value_of(call.recipe, key) for key in SETTINGS} == values
    options: dict[str, Any] = {}
    for key, value in values.items():
        given = value
        if SETTINGS[key].form == "table":
            given = [f"{name}={item}" for name, item in value.items()]
        elif isinstance(value, tuple):
            given = list(value) if SETTINGS[key].kind is str else ",".join(map(str, value))
        options[key.replace(".", "__")] = given
    said = said_by_options(options)
    assert {key: found.value for key, found in said.items()} == values


def test_settings_have_options_of_their_own() -> None:
    options = [setting.about.option for setting in SETTINGS.values()] + [option for option, _ in BEHAVIOUR.values()]
    assert len(set(options)) == len(options) > 50
    assert set(PANELS) == {"", *sections(Recipe)}
    assert all(setting.about.help.endswith(".") for setting in SETTINGS.values())


def test_the_page_has_every_key_and_the_whole_example() -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert text == reference.page(text), "run python -m tests.commands.reference"
    assert all(f"| `{key}` |" in text for key in SETTINGS)
    shown = reference.RECIPE.search(text)
    assert shown is not None and yaml.safe_load(shown[0])["budget"] == {"ratio": 8}


def test_defaults_are_those_of_the_library() -> None:
    given = {setting.key: yaml.safe_load(setting.about.default) for setting in SETTINGS.values()}
    names = {"solver.name": "solver", "network_output": "output"}
    parameters = {**inspect.signature(qc.compress).parameters, **inspect.signature(qc.export).parameters}
    defaults = {name: found.default for name, found in parameters.items() if found.default is not found.empty}
    known = {key: names.get(key, key.rpartition(".")[2]) for key in given}
    compared = {
        key: name for key, name in known.items() if name in defaults and not key.startswith(("menu", "outputs"))
    }
    assert len(compared) > 15
    assert {key: given[key] for key in compared} == {key: defaults[name] for key, name in compared.items()}
    menu = {name: given[f"menu.{name}"] for name in ("bits", "sparsity", "vector_bits")}
    assert qc.Menu(**menu).names == qc.Menu().names


def test_help_lists_every_name_that_is_allowed() -> None:
    allowed = {
        "metric": sensitivity.names(), "menu.families": family_names(), "recovery.objective": objectives.names(),
        "export.format": FORMATS, "export.runtime": RUNTIMES, "groups": ("layer", "filter", "channel", "branch"),
        "menu.preset": PRESETS, "loss": ("auto", "cross-entropy", "kl", "binary-cross-entropy", "squared-error"),
    }  # fmt: skip
    for key, names in allowed.items():
        said = re.split(r"[ ,.;]+", SETTINGS[key].about.help)
        assert set(names) <= set(said), key


def test_options_override_and_one_size_replaces_another(tmp_path: Path) -> None:
    path = written(tmp_path, "budget: {ratio: 8, macs: 100}\nseed: 3\n")
    call = call_of(path, {"budget.bytes": Said(500, "--bytes"), "seed": Said(4, "--seed")})
    budget = call.recipe.budget
    assert (budget.ratio, budget.bytes, budget.macs, call.recipe.seed) == (None, 500, 100, 4)
    assert call.where("seed") == "--seed" and call.where("budget.macs") == f"{path}, line 1"


def test_short_forms_and_empty_values(tmp_path: Path) -> None:
    recipe = call_of(written(tmp_path, "solver: exact\nmenu: ['quantize(bits=4)']\nseed:\nexport: torch\n"), {}).recipe
    assert (recipe.solver.name, recipe.menu.choices, recipe.seed) == ("exact", ("quantize(bits=4)",), None)
    assert recipe.export.format == "torch" and call_of(written(tmp_path, ""), {}).recipe == Recipe()


def test_a_preset_is_named_as_in_python(tmp_path: Path) -> None:
    menu = menu_of(call_of(written(tmp_path, "menu: {preset: smallest}"), {}))
    assert menu is not None and menu.names == qc.Menu.preset("smallest").names
    with pytest.raises(WrongUsage, match=r"menu \(--preset\): unknown preset 'small'; .*smallest"):
        menu_of(call_of(None, {"menu.preset": Said("small", "--preset")}))
    with pytest.raises(WrongUsage, match="give either preset or families, not both"):
        menu_of(call_of(written(tmp_path, "menu: {preset: smallest, families: [prune]}"), {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a:b\nbugdet: {ratio: 8}", "line 2: unknown key 'bugdet'; did you mean 'budget'?"),
        ("budget:\n  ratio: 8\n  macss: 3", "line 3: unknown key of budget 'macss'; did you mean 'macs'?"),
        ("budget:\n  ratio: eight", "line 2: budget.ratio must be a number; got 'eight'"),
        ("time_limit: 2", "line 1: unknown key 'time_limit'; time_limit belongs under solver$"),
        ("solver: {metric: products}", "unknown key of solver 'metric'; metric belongs at the top$"),
        ("menu: {export: a}", "unknown key of menu 'export'; export belongs under outputs or at the top$"),
        ("budget: {ratio: true}", "line 1: budget.ratio must be a number; got True"),
        ("budget: {ratio: .inf}", "must be a number; got inf"),
        ("budget: 8", "line 1: budget must be a table of settings; got '8'"),
        ("seed: 1.5", "line 1: seed must be a whole number; got 1.5"),
        ("seed: 2020-01-01", "must be a whole number"),
        ("menu: {bits: 4}", "menu.bits must be a list .* got 4"),
        ("menu: {bits: [2, x]}", "menu.bits must be a whole number; got 'x'"),
        ("solver: {options: [1]}", "solver.options must be a table"),
        ("solver: {options: {a: [1]}}", "must be numbers, texts, true or false"),
        ("model: ''", "must be text of 1 to 4000 letters"),
        ("seed: 1\nmodel: a:b\nseed: 2", "line 3: seed is given twice, first in line 1"),
        ("? [a]\n: 1", "a key is a name; got a list"),
        ("- a", "a recipe is a table of settings; got a list"),
        ("seed: [1", "is not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "unknown key 'a'"),
        ("model: !!python/object/apply:os.system [echo]", "model must be text"),
        ("model: !!python/name:os.system x", "could not determine a constructor"),
        ("seed: &a 1\nmax_examples: *a", r"line 2: a recipe has no references \(\*a\)"),
        ("model: " + "[" * 50, f"nested at most {DEEPEST} deep"),
        ("seed: " + "9" * 5000, "seed .* digits"),
        ("menu: {choices: [" + "a, " * 1001 + "]}", "list of at most 1000 items"),
        ("#" * (LARGEST + 1), "at most 100,000 bytes"),
        ("seed: 1\n---\nseed: 2", "is not YAML"),
        ("model: \x07", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=message) as caught:
        read_recipe(written(tmp_path, text))
    assert "recipe.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="is a folder, not a recipe"):
        read_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WrongUsage, match=r"bytes\.yaml is not YAML"):
        read_recipe(tmp_path / "bytes.yaml")


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("ab:{}[]&*!-?|>'\"\n\t #%@0123.,"), max_size=60) | st.text(max_size=40))
def test_any_text_is_a_recipe_or_our_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert set(read_recipe(path)) <= set(SETTINGS)
    except QuboCompressError as refusal:
        assert "any.yaml" in str(refusal)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("menu__bits", "2,x", "--bits must be a whole number; got 'x'"),
        ("solver__options", ["restarts"], "--solver-option must be name=value; got 'restarts'"),
        ("budget__ratio", float("nan"), "--ratio must be a number; got nan"),
    ],
)
def test_wrong_options_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        said_by_options({key: value})
