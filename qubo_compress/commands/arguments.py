"""Arguments of the library's calls, from the settings of a command; nothing is measured or solved here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from qubo_compress.budget import Budget
from qubo_compress.commands.call import CommandCall
from qubo_compress.commands.references import called
from qubo_compress.commands.settings import settings
from qubo_compress.errors import (
    InvalidBudget,
    InvalidMenu,
    InvalidOption,
    InvalidSolverOption,
    OwnCodeFailed,
    UnknownName,
    WrongUsage,
)
from qubo_compress.latency import LatencyTable
from qubo_compress.menu import Menu
from qubo_compress.network.losses.classification import AUTO, make_loss
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metric import make_metric
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import check_time_limit


@contextlib.contextmanager
def wrong_usage(call: CommandCall, section: str) -> Iterator[None]:
    """Turn the library's refusals of a setting into one that says where the section was given."""
    try:
        yield
    except (InvalidBudget, InvalidMenu, InvalidOption, InvalidSolverOption, UnknownName) as cause:
        keys = [setting.key for setting in settings() if setting.key == section or setting.section == section]
        places = dict.fromkeys(call.places[key] for key in keys if key in call.places)
        raise WrongUsage(f"{section} ({', '.join(places)}): {cause}" if places else f"{section}: {cause}") from cause


def model_of(call: CommandCall) -> nn.Module:
    """The network: imported and called.

    Raises:
        WrongUsage: when there is no such function.
        OwnCodeFailed: when it fails, or returns something else.
    """
    reference = call.needed("model")
    model = called(reference, call.where("model"))
    if not isinstance(model, nn.Module):
        raise OwnCodeFailed(f"{call.where('model')}: {reference} must return a torch.nn.Module; got {_named(model)}")
    return model


def batches_of(call: CommandCall, *keys: str) -> Iterable[Any]:
    """The batches of the first of these settings that was given."""
    key = next((key for key in keys if getattr(call.recipe, key) is not None), keys[-1])
    reference = call.needed(key)
    batches = called(reference, call.where(key))
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes)):
        raise OwnCodeFailed(f"{call.where(key)}: {reference} must return batches; got {_named(batches)}")
    return batches


def budget_of(call: CommandCall) -> Budget:
    """The limits."""
    given = call.recipe.budget
    latency = None if given.latency is None else LatencyTable.load(given.latency)
    named = {setting.key.partition(".")[2] for setting in settings() if setting.section == "budget"} - {"latency"}
    with wrong_usage(call, "budget"):
        return Budget(**{name: getattr(given, name) for name in named}, latency=latency)


def menu_of(call: CommandCall) -> Menu | None:
    """The choices to offer; None for the default ones."""
    given = call.recipe.menu
    product = {
        name: value for name in ("bits", "sparsity", "vector_bits") if (value := getattr(given, name)) is not None
    }
    with wrong_usage(call, "menu"):
        named = [name for name in ("preset", "families", "choices") if getattr(given, name) is not None]
        grid = ["bits, sparsity and vector_bits"] if product else []
        if len(named + grid) > 1:
            raise InvalidMenu(f"give either {' or '.join(named + grid)}, not both")
        if given.preset is not None:
            menu = Menu.preset(given.preset)
        elif given.families is not None:
            menu = Menu.of(*given.families)
        elif given.choices is not None or product:
            menu = Menu(given.choices, **product)
        elif given.coded or given.activations:
            menu = Menu()
        else:
            return None
        menu = menu.coded() if given.coded else menu
        return menu if given.activations is None else menu.with_activations(given.activations)


def solver_of(call: CommandCall) -> Solver:
    """The solver, with its options."""
    given = call.recipe.solver
    with wrong_usage(call, "solver"):
        if given.time_limit is not None:
            check_time_limit(given.time_limit)
        return make_solver(given.name or "auto", **(given.options or {}))


def given_only(**values: Any) -> dict[str, Any]:
    """The keyword arguments that are not None: the library has defaults for the others."""
    return {name: value for name, value in values.items() if value is not None}


def measurement_of(call: CommandCall) -> dict[str, Any]:
    """Keyword arguments of a measurement, checked before the network is made."""
    given = call.recipe
    found = given_only(
        menu=menu_of(call), metric=given.metric, loss=given.loss, groups=given.groups, max_examples=given.max_examples,
        batch_size=given.batch_size, seconds=given.seconds, output=given.network_output, class_axis=given.class_axis,
        cache=given.cache, seed=given.seed,
    )  # fmt: skip
    with wrong_usage(call, "metric"):
        make_metric(given.metric or "auto")
    if given.loss not in (None, AUTO):
        with wrong_usage(call, "loss"):
            make_loss(given.loss)
    Measurement(**found).checked()
    return found


def reading_of(call: CommandCall) -> dict[str, Any]:
    """Keyword arguments that say how outputs are read."""
    given = call.recipe
    return given_only(
        loss=given.loss, output=given.network_output, class_axis=given.class_axis, batch_size=given.batch_size
    )


def _named(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
