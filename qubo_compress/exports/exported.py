"""What an export wrote: sizes, differences, and where it runs faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qubo_compress._internal.notebook import fragment
from qubo_compress.plan import Compression

SHOWN = 12
"""Rows of a table in a terminal."""

WIDE = 256 * 256
"""Weights of the smallest linear layer that is packed by default. ``benchmarks/results/packed_products.md``: here one
row is 1.5 to 1.9 times as fast as in floating point and more rows little slower; half as wide, all are slower."""

FASTER_PACKED = (
    (768 * 768, "onnxruntime"),
    (384 * 384, "onnxruntime, up to 16 rows at a time"),
    (192 * 192, "onnxruntime, one row at a time"),
    (0, "nowhere: slower than in floating point"),
)
"""Weights of a linear layer -> where it is faster with packed weights, by the same table. Rows are batch x tokens."""

NOWHERE = "nowhere: fewer bytes only"
IN_INTEGERS = "onnxruntime and OpenVINO, in integers"
IN_INTEGERS_OPENVINO = "OpenVINO, in integers; onnxruntime if exported with runtime='onnxruntime'"
NOT_TIMED = "not measured"
"""Transposed convolutions of rounded inputs."""


@dataclass(frozen=True)
class ExportedTensor:
    """One tensor in the file.

    Attributes:
        name: in the network.
        choice: of the plan.
        form: how the file holds it, such as ``"int4"``.
        nbytes: in the file.
        runs: the operators or modules that read it.
        faster: where that is faster than floating point, as ``benchmarks/results/elsewhere.md`` measured it.
    """

    name: str
    choice: str
    form: str
    nbytes: int
    runs: str
    faster: str


@dataclass(frozen=True)
class Exported:
    """A network in a file of another program.

    Attributes:
        path: of the file, or of the folder.
        format: ``"onnx"``, ``"torch"`` or ``"compressed-tensors"``.
        nbytes: of the file, or of the files in the folder.
        graph_bytes: of these, all that is not data of tensors.
        float_bytes: of the same file with every tensor in the network's own dtype.
        artifact_bytes: of the file that :func:`qubo_compress.save` writes.
        original_bytes: of the uncompressed network's parameters and buffers.
        largest_difference: from the PyTorch module's outputs, as a share of the largest one, computed as the file says.
        default_difference: the same for the runtime with its default settings, which may round the inputs of products
            with packed integers to 8 bits.
        agreement: share of answers equal to the PyTorch module's in the runtime's own arithmetic, which may round
            inputs to 8 bits.
        examples: that both were measured on.
        tensors: one entry for every tensor.
    """

    path: Path
    format: str
    nbytes: int
    graph_bytes: int
    float_bytes: int
    artifact_bytes: int
    original_bytes: int
    largest_difference: float
    default_difference: float
    agreement: float
    examples: int
    tensors: tuple[ExportedTensor, ...]

    @property
    def ratio(self) -> float:
        """Bytes of the file in floating point over bytes of this one."""
        return self.float_bytes / self.nbytes

    def __str__(self) -> str:
        names = ("tensor", "choice", "stored", "bytes", "runs", "faster")
        shown = sorted(self.tensors, key=lambda one: -one.nbytes)[:SHOWN]
        rows = [(one.name, one.choice, one.form, f"{one.nbytes:,}", one.runs, one.faster) for one in shown]
        widths = [max(len(row[column]) for row in (names, *rows)) for column in range(len(names))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (names, *rows)
        ]
        more = len(self.tensors) - len(shown)
        return "\n".join([*self._facts(), *lines, *([f"and {more} smaller tensors"] if more else [])])

    def _repr_html_(self) -> str:
        head = ("tensor", "choice", "stored", "runs", "faster", "bytes")
        largest = sorted(self.tensors, key=lambda one: -one.nbytes)
        rows = ((one.name, one.choice, one.form, one.runs, one.faster, f"{one.nbytes:,}") for one in largest)
        return fragment("Exported", self._facts(), head, rows, names=5, more=" tensors, which are smaller")

    def _facts(self) -> list[str]:
        return [
            f"{self.path}: {self.nbytes:,} bytes, {self.graph_bytes:,} of them not data of tensors; "
            f"{self.float_bytes:,} in floating point, {self.artifact_bytes:,} in our own file",
            f"outputs differ from PyTorch's by at most {self.largest_difference:.1e} of the largest, computed as the "
            f"file says, and {self.default_difference:.1e} with the runtime's defaults; "
            f"{100 * self.agreement:.1f} % of {self.examples:,} examples' answers are equal",
        ]


def faster_packed(weights: int) -> str:
    """Where a linear layer of that many weights is faster with packed weights than in floating point.

    Example:
        >>> faster_packed(96 * 96), faster_packed(256 * 1024)
        ('nowhere: slower than in floating point', 'onnxruntime, up to 16 rows at a time')
    """
    return next(where for least, where in FASTER_PACKED if weights >= least)


def choices_by_tensor(compression: Compression) -> Mapping[str, str]:
    """Name of a tensor -> the choices of its groups, each once."""
    found: dict[str, dict[str, None]] = {}
    for group in compression.layout.groups:
        for member in group.members:
            found.setdefault(member.name, {})[compression.plan.choices[group.name]] = None
    return {name: ", ".join(choices) for name, choices in found.items()}
