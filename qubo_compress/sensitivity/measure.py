"""Measures a table: the one place that runs a metric on a model, its choices and its examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from qubo_compress.budget import MILLION
from qubo_compress.calibration.weights import ExampleWeights
from qubo_compress.errors import CacheMismatch, QuboCompressError
from qubo_compress.menu.menu import Menu
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.discovery import GroupRule
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.network.losses.signature import loss_signature
from qubo_compress.network.scores import OutputLike
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.costs import price_choices
from qubo_compress.sensitivity.coupled.measure import measure_channels
from qubo_compress.sensitivity.forecast import forecast_within
from qubo_compress.sensitivity.forward_sweep import base_flips
from qubo_compress.sensitivity.function_signature import function_signature, same_function
from qubo_compress.sensitivity.infeasible import explained
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metric import Metric, MetricResult
from qubo_compress.sensitivity.metrics.auto import multiplications, resolved
from qubo_compress.sensitivity.noise import noise_terms
from qubo_compress.sensitivity.optimism import on_other_examples
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.progress import progress_bar, say
from qubo_compress.sensitivity.provenance import Provenance
from qubo_compress.sensitivity.ranks import Arrays, ranks_of
from qubo_compress.sensitivity.regularisation import regularised
from qubo_compress.sensitivity.shrinkage import refuse_unshrinkable
from qubo_compress.sensitivity.specimen import Around, Specimen
from qubo_compress.sensitivity.subject import Subject, Work
from qubo_compress.sensitivity.table import SensitivityTable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Priced = Callable[[Mapping[str, IntArray], Mapping[str, int], StoredChoices], None]
"""Called with costs, fixed costs and the choices, and may refuse them: first without costs, because the milliseconds of
a latency table are known by the names of the choices alone, and again when the choices are stored."""


MADE = 2
"""Part of a cache's signature. The number increases whenever choices are made from data in another way."""


@torch.inference_mode(False)  # inference mode allows no gradients, and hides writes
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    menu: Menu | None = None,
    metric: str | Metric = "auto",
    loss: LossLike = AUTO,
    groups: GroupRule = "layer",
    max_examples: int = 2048,
    cache: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    max_rank: int | None = 1024,
    shrinkage: float | str | None = None,
    interactions: bool | float = True,
    example_weights: ExampleWeights | None = None,
    output: OutputLike = None,
    class_axis: int | None = None,
    seconds: float | None = None,
    process_group: ProcessGroup | bool = True,
    batch_size: int | None = None,
) -> SensitivityTable:
    """Measure what each choice and each pair of choices costs the network.

    The model is unchanged afterwards, even after an exception.

    If ``torch.distributed`` is initialised, as under ``torchrun``, its ranks share the work, and every rank gets the
    table of a single process, bit for bit on equal machines. Then all ranks must call, with the same arguments and the
    **same batches in the same order**: units of work are distributed, not examples. Batches of a DistributedSampler are
    refused; see :meth:`SensitivityTable.merge_ranks` for ranks with different examples.

    Args:
        model: trained; on the CPU or a GPU; in float32, bfloat16 or float16.
        batches: re-iterable calibration batches; see :func:`qubo_compress.calibration.examples.read_examples`.
        menu: the choices to offer; default: ``Menu()``.
        metric: ``"auto"``: ``"gauss-newton"`` for small networks, ``"products"`` above; a registered name (see
            ``qubo_compress.sensitivity.names()``) or a metric object.
        loss: ``"auto"``: the one that fits outputs and targets, see
            :func:`qubo_compress.calibration.fitting_loss.fitting_loss`; ``"cross-entropy"``, ``"kl"``,
            ``"binary-cross-entropy"``, ``"squared-error"`` or a function (outputs, targets) -> (N,).
        groups: see :func:`qubo_compress.menu.discover`; or ``"channel"``: keep or remove each coupled set of channels,
            ``"channel:8"`` eight of a layer at a time, which kernels like better, ``"branch"`` all inner channels of a
            residual block, or of another branch whose result is added to something, at a time. With a menu, layers
            choose from it beside these decisions; without one, they stay as they are.
        max_examples: reading the batches stops there.
        cache: folder for finished parts; a later call with the same arguments resumes from it.
        seed: of all random draws.
        progress: show a progress bar.
        max_rank: largest number of columns of the factor.
        shrinkage: share of the divergence from the original network in the linear terms, 0 to 1; ``"auto"``: chosen
            by how well one half of the examples predicts the loss on the other; None: 1 if the metric knows
            divergences. See :mod:`qubo_compress.sensitivity.shrinkage`.
        interactions: False measures only linear terms; True limits rows and slopes, and shrinks pair energies by how
            well one half of the examples predicts the other's, all of :mod:`qubo_compress.sensitivity.shrinkage`; a
            number is the share of the pair energies that is kept, and nothing is limited.
        example_weights: which examples count more: (N,) numbers, one per example read, multiplied by the batches' own
            weights; ``"tail"`` or a :class:`qubo_compress.TailWeights`, which favour weak and rare classes, and
            small margins if asked. None: the batches' own weights.
        output: which part of the return value of forward holds the outputs: a key or attribute, an index, or a
            function; default: ``logits``, or the first tensor of a tuple.
        class_axis: of outputs with three or more axes, if targets do not show it: -1 for the (N, T, V) of language
            models, 1 for (N, C, H, W).
        seconds: approximate time for the measurement: uses fewer examples if all would take longer, and the
            provenance says how many. The number depends on the machine and its load.
        process_group: the ranks that share the work: True: the default group, if there is one; a group;
            False: only this process, whatever is initialised.
        batch_size: examples per run of the network. None: the batches as given, joined if they are
            small, and split above 250 examples, if the network returns the same then; see
            :mod:`qubo_compress.calibration.passes`. A network that takes only its own batches, because their size
            is fixed or their examples influence each other, is measured on them, by ``"gauss-newton"``.

    Raises:
        InvalidBatches, InvalidModel, InvalidMenu, NonFiniteLoss, ForwardFailed, CacheMismatch, UnknownName:
            for what cannot be used; the message says what to do.
        RanksDisagree: when the ranks got different batches or arguments.
        RankFailed: when another rank raised an error or stopped answering.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = [(torch.randn(16, 4), torch.randint(3, (16,)))]
        >>> table = measure(model, data, menu=Menu(bits=(2, 8), sparsity=(0.0,)), progress=False)
        >>> table.group_names
        ('0.weight', '0.bias', '2.weight', '2.bias')
    """
    settings = Measurement(
        menu, metric, loss, groups, max_examples, cache, seed, progress, max_rank, shrinkage, interactions,
        example_weights, output, class_axis, seconds, process_group, batch_size,
    )  # fmt: skip
    ranks = ranks_of(process_group, model)
    with ranks.together():
        ranks.require_same({name: f"{getattr(settings, name)}" for name in ("shrinkage", "interactions", "seconds")})
        return measure_specimen(Specimen.of(model, batches, settings))


def measure_specimen(
    specimen: Specimen, around: Around | None = None, priced: Priced | None = None
) -> SensitivityTable:
    """Measure every single choice, from the uncompressed network or around a plan already applied."""
    if specimen.settings.about_channels:
        return measure_channels(specimen)
    started, settings = time.perf_counter(), specimen.settings
    ranks = ranks_of(settings.process_group, specimen.model)
    show = settings.progress and ranks.rank == 0
    # Before anything runs: a forward may write to buffers of the copies.
    weights = NetworkTensors(specimen.model).signature()
    held = weights if around is None else f"{weights} around {NetworkTensors(around.base).signature()}"
    specimen, around = specimen.private(), None if around is None else around.private()
    with every_layer_runs(), torch.no_grad():
        subject = prepared(specimen, around)
        if priced is not None:
            priced({}, {}, subject.choices)
        chosen, forecast = resolved(settings.asked, subject)[0], None
        if show or settings.seconds is not None:
            chosen, forecast = forecast_within(subject, settings, ranks)
            if forecast.examples < subject.examples.count:
                subject = prepared(specimen.on(specimen.examples.leading(forecast.examples)), around)
        if show:
            say(str(forecast))
        refuse_unshrinkable(chosen, settings.shrinkage)
        signature = _signature(subject, held, repr(chosen), specimen)
        ranks.require_same({**signature, "max_rank": f"{settings.max_rank}"})
        subject = replace(subject, work=Work(UnitCache(settings.cache, signature, ranks)))
        _refuse_other_function(subject, settings.cache)
        with progress_bar(show, "storing choices", len(subject.layout.groups)) as advance:
            prices = price_choices(subject, advance)
        costs, subject = dict(prices.costs), replace(subject, choices=subject.choices.with_fits(prices.fits))
        fixed_costs = {"bytes": fixed_bytes(subject.layout, settings.offered.names)}
        if priced is not None:
            with explained(subject.layout, costs, fixed_costs, subject.offsets, subject.choices.kept_because):
                priced(costs, fixed_costs, subject.choices)
        with progress_bar(show, f"measuring ({chosen.metric_name})", chosen.evaluations(subject)) as advance:
            result = _checked(chosen.measure(subject.with_progress(advance)), chosen, subject)
        noise = ranks.first(lambda: {"noise": noise_terms(subject, chosen.metric_name, prices.unreliable)})["noise"]
    _add_flips(subject, result, costs, fixed_costs)
    optimism = subject.choices.optimism_of_all()
    if chosen.metric_name != "magnitude":  # which looks at no examples
        result = on_other_examples(result, optimism)

    def finished() -> Arrays:
        baseline = subject.mean_loss(subject.reference)
        arrays = regularised(subject, result, chosen.metric_name, settings, baseline, around is not None)
        constant = 0.0 if around is None else _moved(subject, float(arrays["numbers"][0]))
        measured = [baseline, constant, time.perf_counter() - started, subject.cache.loaded]
        return {**arrays, "linear": arrays["linear"] + noise, "numbers": np.array([*arrays["numbers"], *measured])}

    # By one rank, because machines may round differently.
    found = ranks.first(finished)
    share, dropped, trust, baseline, constant, took, loaded = found["numbers"].tolist()
    return SensitivityTable(
        layout=subject.layout,
        menu_names=settings.offered.names,
        choices=tuple(tuple(offered) for offered in subject.choices),
        linear=found["linear"],
        costs=costs,
        fixed_costs=fixed_costs,
        provenance=Provenance(
            chosen.metric_name, signature["loss"], subject.examples.count, baseline, result.evaluations,
            took, dropped, share, weights, int(loaded), trust, multiplications(subject),
        ),
        factor=found.get("factor"),
        pairs=result.pairs,
        constant=constant,
        divergence=found.get("divergence"),
        payloads=subject.choices.payloads,
        fits=subject.choices.fits,
        kept_because=subject.choices.kept_because,
        optimism=optimism,
    )  # fmt: skip


def _signature(subject: Subject, weights: str, metric: str, specimen: Specimen) -> dict[str, str]:
    """A description of everything that the parts of a measurement depend on."""
    loss, reading = specimen.loss, subject.examples.reading
    output = loss_signature(reading.output) if callable(reading.output) else repr(reading.output)
    return {
        "weights": weights,
        "data": subject.examples.signature(),
        "menu": "\n".join(",".join(offered) for offered in subject.choices),
        "groups": subject.layout.rule,
        "metric": metric,
        "loss": loss if isinstance(loss, str) else loss_signature(loss),
        "options": f"seed={subject.seed} columns={subject.max_columns} interactions={subject.interactions} sketch=2 "
        f"made={MADE} output={output} class_axis={reading.class_axis}",
        "version": _version(),
    }


def _version() -> str:
    """Of this library; a source tree that was never installed has none."""
    try:
        return metadata.version("qubo_compress")
    except metadata.PackageNotFoundError:
        return "not installed"


def _refuse_other_function(subject: Subject, cache: str | Path | None) -> None:
    """Raise :class:`CacheMismatch` if the folder was measured with other outputs of the network or the loss."""
    if cache is not None and not subject.cache.agrees("function", function_signature(subject), same_function):
        raise CacheMismatch(
            f"the cache in {cache} was measured with a network or a loss of the same weights and settings that "
            "returned something else on these examples: an activation, a stride, a constant or a buffer that is not "
            "stored has changed. Name another folder, or delete this one to measure again"
        )


def _checked(result: MetricResult, metric: Metric, subject: Subject) -> MetricResult:
    """The result of a metric, which may be anybody's, refused unless it has a linear term for every choice."""
    wanted, name = int(subject.offsets[-1]), metric.metric_name
    if not isinstance(result, MetricResult):
        raise QuboCompressError(
            f"metric {name!r} returned a {type(result).__name__}; measure must return a MetricResult with {wanted} "
            "linear terms"
        )
    if not isinstance(result.linear, np.ndarray) or result.linear.shape != (wanted,):
        raise QuboCompressError(
            f"metric {name!r} returned linear terms of shape {np.shape(result.linear)} in a "
            f"{type(result.linear).__name__}; the {wanted} choices need a numpy array of shape ({wanted},)"
        )
    return result


def _add_flips(subject: Subject, result: MetricResult, costs: dict[str, IntArray], fixed_costs: dict[str, int]) -> None:
    """Harmful flips of every choice as a cost, in millionths of the examples, rounded up."""
    if result.flips is None:
        return
    cost = np.ceil(result.flips * MILLION - 1e-6).astype(np.int64)
    # Around a plan a swap may repair flips; costs are never negative, so repaired flips go to the fixed part.
    least = np.minimum.reduceat(cost, subject.offsets[:-1])
    costs["harmful_flips"] = cost - np.repeat(least, np.diff(subject.offsets))
    fixed_costs["harmful_flips"] = int(least.sum()) + math.ceil(base_flips(subject) * MILLION - 1e-6)


def _moved(subject: Subject, share: float) -> float:
    """The distance of the base model from the uncompressed one, in the same mixture as the linear terms."""
    change = apart = 0.0
    for number, part in subject.slices():
        outputs, reference, weights = subject.outputs[number], subject.reference[number], subject.row_weights(number)
        values = [subject.loss.values(rows, part.targets, reference).double() for rows in (outputs, reference)]
        change += float(((values[0] - values[1]) * weights).sum())
        apart += float((subject.loss.divergence(outputs, part.targets, reference).double() * weights).sum())
    return (1 - share) * change + share * apart
