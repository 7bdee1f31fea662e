"""Every setting of the command line, once: a key of the recipe, an option, its type and its help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

Scalar = str | int | float | bool


@dataclass(frozen=True)
class About:
    """The option of a setting, and its help.

    Attributes:
        option: its name.
        help: one sentence.
        default: what holds where nothing is said, as a recipe would say it; empty for nothing.
    """

    option: str
    help: str
    default: str = ""


@dataclass(frozen=True)
class BudgetSettings:
    """Limits, as in :class:`qubo_compress.Budget`."""

    short: ClassVar[str | None] = None

    ratio: Annotated[float | None, About("--ratio", "Original bytes over stored bytes: 8 is an eighth.")] = None
    bytes: Annotated[int | None, About("--bytes", "Largest size of the file, in bytes.")] = None
    bits_per_weight: Annotated[float | None, About("--bits-per-weight", "Bits of the file per parameter.")] = None
    macs: Annotated[int | None, About("--macs", "Most multiplications by non-zero weights per example.")] = None
    bit_operations: Annotated[int | None, About("--bit-operations", "Most multiplications, weighted by bits.")] = None
    cells: Annotated[int | None, About("--cells", "Most one-bit memory cells.")] = None
    harmful_flips: Annotated[
        float | None, About("--harmful-flips", "Largest share of examples that are right before and wrong after.")
    ] = None
    latency_ms: Annotated[float | None, About("--latency-ms", "Most milliseconds of one run.")] = None
    latency: Annotated[Path | None, About("--latency", "File of the latency table that predicts them.")] = None


@dataclass(frozen=True)
class MenuSettings:
    """The choices to offer, as in :class:`qubo_compress.Menu`."""

    short: ClassVar[str | None] = "choices"

    choices: Annotated[
        tuple[str, ...] | None, About("--choice", "A choice to offer, such as 'quantize(bits=4)'; repeat.")
    ] = None
    families: Annotated[
        tuple[str, ...] | None,
        About("--family", "compensate, frequency, low-rank, prune, quantize, trellis, vectors or woodfisher; repeat."),
    ] = None
    preset: Annotated[
        str | None, About("--preset", "A menu for one purpose: smallest is for the most accuracy in the fewest bytes.")
    ] = None
    bits: Annotated[
        tuple[int, ...] | None,
        About("--bits", "Bits per weight to offer, from 2 to 16, such as 2,4,8.", "[2, 3, 4, 6, 8]"),
    ] = None
    sparsity: Annotated[
        tuple[float, ...] | None,
        About("--sparsity", "Shares of weights to prune, from 0 to below 1, such as 0,0.5.", "[0, 0.5, 0.75]"),
    ] = None
    vector_bits: Annotated[
        tuple[int, ...] | None,
        About("--vector-bits", "Bits of biases and normalisations, of 8, 16 and 32, such as 16,8.", "[16, 8]"),
    ] = None
    coded: Annotated[bool | None, About("--coded", "Also offer each choice behind the entropy coder.", "false")] = None
    activations: Annotated[
        int | None, About("--activations", "Also round the inputs of layers, to 2 to 8 bits; runtimes compute with 8.")
    ] = None


@dataclass(frozen=True)
class SolverSettings:
    """Which solver, for how long."""

    short: ClassVar[str | None] = "name"

    name: Annotated[str | None, About("--solver", "A name that 'qubo-compress solvers' lists.", "auto")] = None
    time_limit: Annotated[float | None, About("--time-limit", "Seconds for each solve.", "10")] = None
    work_limit: Annotated[int | None, About("--work-limit", "Most sweeps, iterations or nodes (solve).")] = None
    options: Annotated[
        Mapping[str, Scalar] | None, About("--solver-option", "An option of the solver, as name=value; repeat.")
    ] = None


@dataclass(frozen=True)
class RecoverySettings:
    """What is done after the plan is applied."""

    short: ClassVar[str | None] = None

    recover: Annotated[
        bool | None, About("--recover", "Repair statistics and biases; kept unless it did harm.", "true")
    ] = None
    reconstruct: Annotated[
        bool | None,
        About("--reconstruct", "Store compensated choices again, for their inputs in the small network.", "true"),
    ] = None
    epochs: Annotated[int | None, About("--epochs", "Epochs of fine-tuning on the calibration examples.", "0")] = None
    objective: Annotated[
        str | None, About("--objective", "What it minimises: distillation, label-preserving or plain.", "distillation")
    ] = None


@dataclass(frozen=True)
class SearchSettings:
    """What is done beyond one solve."""

    short: ClassVar[str | None] = None

    rounds: Annotated[int | None, About("--rounds", "Times to measure again around the best plan.", "0")] = None
    evaluations: Annotated[int | None, About("--evaluations", "Examples run by a search on the real loss.", "0")] = None


@dataclass(frozen=True)
class ExportSettings:
    """The form of the exported file, as in :func:`qubo_compress.export`."""

    short: ClassVar[str | None] = "format"

    format: Annotated[str | None, About("--format", "onnx, torch or compressed-tensors.", "onnx")] = None
    runtime: Annotated[
        str | None, About("--runtime", "onnxruntime or openvino; without it, operators that both know.")
    ] = None


@dataclass(frozen=True)
class OutputSettings:
    """The files: what one command writes, the next one reads."""

    short: ClassVar[str | None] = None

    table: Annotated[Path | None, About("--table", "Sensitivity table: measure writes it, solve reads it.")] = None
    plan: Annotated[Path | None, About("--plan", "Plan: solve writes it, apply reads it.")] = None
    network: Annotated[Path | None, About("--network", "Compressed network: apply and compress write it.")] = None
    export: Annotated[Path | None, About("--export", "File or folder for other programs.")] = None
    report: Annotated[Path | None, About("--report", "Report, one HTML file.")] = None
    audit: Annotated[Path | None, About("--audit", "Audit, one HTML file.")] = None
    solution: Annotated[Path | None, About("--solution", "Reply to a problem file, as JSON.")] = None


@dataclass(frozen=True)
class Recipe:
    """The settings of a command; None means that nothing was said, and the library's own default holds."""

    short: ClassVar[str | None] = None

    model: Annotated[str | None, About("--model", "module:function that returns the trained network.")] = None
    data: Annotated[str | None, About("--data", "module:function that returns calibration batches.")] = None
    validation: Annotated[
        str | None, About("--validation", "module:function that returns the batches that choose between plans.")
    ] = None
    test: Annotated[str | None, About("--test", "module:function that returns the batches of the audit.")] = None
    metric: Annotated[
        str | None, About("--metric", "auto, gauss-newton, products, jacobian, fisher, pairwise or magnitude.", "auto")
    ] = None
    loss: Annotated[
        str | None, About("--loss", "auto, cross-entropy, kl, binary-cross-entropy or squared-error.", "auto")
    ] = None
    groups: Annotated[
        str | None, About("--groups", "layer, filter, channel, channel:8, branch or a regular expression.", "layer")
    ] = None
    max_examples: Annotated[int | None, About("--max-examples", "Calibration examples read.", "2048")] = None
    batch_size: Annotated[int | None, About("--batch-size", "Examples per run of the network.")] = None
    seconds: Annotated[float | None, About("--seconds", "About how long the measurement may take.")] = None
    network_output: Annotated[
        str | None, About("--network-output", "Key of the outputs in what the network returns.")
    ] = None
    class_axis: Annotated[int | None, About("--class-axis", "Axis of the classes in outputs of three axes.")] = None
    cache: Annotated[Path | None, About("--cache", "Folder that an interrupted measurement resumes from.")] = None
    seed: Annotated[int | None, About("--seed", "Seed of all random draws.", "0")] = None
    problem: Annotated[Path | None, About("--problem", "Problem file to solve, instead of a table.")] = None
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    menu: MenuSettings = field(default_factory=MenuSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    outputs: OutputSettings = field(default_factory=OutputSettings)


@dataclass(frozen=True)
class Setting:
    """One setting, as found in the classes above.

    Attributes:
        key: in a recipe, with its section: ``"budget.ratio"``.
        kind: type of the value, or of its items.
        form: ``"one"``, ``"list"`` or ``"table"``.
        about: its option.
    """

    key: str
    kind: type
    form: str
    about: About

    @property
    def section(self) -> str:
        """The section of the recipe; empty at its top."""
        return self.key.rpartition(".")[0]


def sections(kind: type) -> dict[str, type]:
    """Key -> class of the sections of a recipe."""
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}


def settings(kind: type = Recipe, prefix: str = "") -> Iterator[Setting]:
    """All settings of a class of settings and its sections.

    Example:
        >>> [setting.key for setting in settings() if setting.section == "solver"]
        ['solver.name', 'solver.time_limit', 'solver.work_limit', 'solver.options']
    """
    below = sections(kind)
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in below:
            yield from settings(below[item.name], f"{prefix}{item.name}.")
        else:
            held, about = get_args(hints[item.name])
            yield _setting(prefix + item.name, held, about)


def _setting(key: str, held: Any, about: About) -> Setting:
    kind = next(part for part in get_args(held) if part is not type(None))
    origin = get_origin(kind)
    if origin is tuple:
        return Setting(key, get_args(kind)[0], "list", about)
    if origin is not None:
        return Setting(key, str, "table", about)
    return Setting(key, kind, "one", about)


def homes(name: str) -> str:
    """Where a key of that name belongs, as text; empty if there is no such key.

    Example:
        >>> homes("time_limit"), homes("metric"), homes("timelimit")
        ('time_limit belongs under solver', 'metric belongs at the top', '')
    """
    found = [setting.section for setting in settings() if setting.key.rpartition(".")[2] == name]
    found += [""] if name in sections(Recipe) else []
    places = [f"under {section}" if section else "at the top" for section in found]
    return f"{name} belongs {' or '.join(places)}" if places else ""


def built(values: Mapping[str, Any], kind: type = Recipe, prefix: str = "") -> Any:
    """A recipe from its values by key; what is missing stays None.

    Example:
        >>> built({"budget.ratio": 8.0, "seed": 3}).budget.ratio
        8.0
    """
    below = sections(kind)
    found = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in below:
            found[item.name] = built(values, below[item.name], f"{prefix}{item.name}.")
        elif prefix + item.name in values:
            found[item.name] = values[prefix + item.name]
    return kind(**found)


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a key with its section."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found
