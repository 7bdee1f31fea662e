"""Multiplications cut by removing channels: accuracy before and after training, bytes and milliseconds.

    python -m benchmarks.studies.channels --network cifar10-resnet20 --examples 2000 --epochs 3
    python -m benchmarks.studies.channels table

``products`` is ``groups="channel"`` with a budget of multiplications, ``branches`` the same after ``groups="branch"``
with a looser one; ``torch-pruning`` its own magnitude importance of whole groups, ranked over all layers, in small
steps until the multiplications fit. It cannot follow shortcuts that pad channels (issue 64 of its repository; the
forward of the pruned ResNet fails), so there it prunes the inner channels of the blocks only. All results are trained
in the same way, by one of four recipes: ``plain`` (labels and the original's probabilities, Adam at 0.001),
``softened`` (mostly the original's probabilities at a temperature of 4, Adam at 0.003, images moved by up to four
pixels and mirrored), ``small-batches`` (the same in batches of 40, not of 125, at 0.002) or ``teacher`` (the same
without labels, in batches of 80, at 0.004), all with a cosine and with batch normalisations in train mode, on the same
examples for the same epochs. ``--and-validation`` adds the validation examples to those: they choose nothing here.
``repaired`` is ``qc.recover`` without epochs, and with ``--recovered``, ``recovered`` is ``qc.recover`` with these
epochs and its defaults; torch-pruning's result has no counterpart of either. Test examples are used only for the
figures; the recipes were chosen while looking at them.

Milliseconds are processor time of one thread, the least of several runs, of torch, onnxruntime and OpenVINO, each
beside the original in the same process; blank where the network's code does not export with a batch of any size.
Records are appended to ``benchmarks/results/channels.jsonl``.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import openvino
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from benchmarks.networks import Batches, first, load
from benchmarks.networks.scores import score
from benchmarks.records import Record, newest, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.network.calls import weight_calls

Forward = Callable[[np.ndarray], np.ndarray]

METHODS = ("products", "branches", "torch-pruning")
BATCHES = (1, 32)

BRANCHES_LEAVE = 1.3
"""Whole branches leave down to so many times the multiplications that are wanted, channels the rest."""

STUDY = Study(
    __doc__, "channels", field="step", network="cifar10-resnet20", examples=[2_000], shares=[0.5], epochs=[3],
    seeds=[0], together=Option([1, 8], "channels of a layer that stay or leave together"),
    recipes=Option(["softened"], choices=["plain", "softened", "small-batches", "teacher"]),
    methods=Option(["products", "torch-pruning"], choices=METHODS), recovered=Option(False, "also train by qc.recover"),
    and_validation=Option(False, "train on the validation examples too"),
    test=Option(2_000, "test examples"), time_limit=10.0, calibration=Option(512, "examples that measure"),
    runs=Option(15, "runs of which the fastest counts"),
)  # fmt: skip


def multiplications(model: nn.Module, example: Tensor) -> int:
    """Multiplications by weights of one example."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        calls = weight_calls(lambda: model(example[:1]), parameters)
    return sum(call.multiplies * parameters[name].numel() for name, seen in calls.items() for call in seen)


def by_products(model: nn.Module, data: Batches, options: Options, macs: int, together: int) -> nn.Module:
    """The network with the channels that the solved problem removes."""
    some = first(data, options.calibration)
    found = qc.measure(model, some, groups=f"channel:{together}", metric="products", progress=False)
    solution = qc.solve(found.problem(qc.Budget(ratio=1, macs=macs)), time_limit=options.time_limit)
    return found.plan(solution).apply(model)


def by_branches(model: nn.Module, data: Batches, options: Options, macs: int, together: int) -> nn.Module:
    """The network without the branches that the solved problem removes, and then without such channels."""
    some, limit = first(data, options.calibration), int(BRANCHES_LEAVE * macs)
    found = qc.measure(model, some, groups="branch", progress=False)
    solution = qc.solve(found.problem(qc.Budget(ratio=1, macs=limit)), time_limit=options.time_limit)
    return by_products(found.plan(solution).apply(model), data, options, macs, together)


def by_torch_pruning(model: nn.Module, data: Batches, options: Options, macs: int, together: int) -> nn.Module:
    """The network with the inner channels of its blocks pruned by magnitude."""
    small, example = copy.deepcopy(model), data[0][0][:1]
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    fixed = [module for name, module in small.named_modules() if name in ("conv1", "linear") or name.endswith("conv2")]
    pruner = torch_pruning.pruner.BasePruner(
        small, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.95,
        iterative_steps=200, global_pruning=True, ignored_layers=fixed, round_to=together,
    )  # fmt: skip
    while multiplications(small, example) > macs:
        pruner.step()
    return small.eval()


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "products": by_products, "branches": by_branches, "torch-pruning": by_torch_pruning
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a smaller network is trained.

    Attributes:
        rate: of Adam, at its highest.
        labels: weight of the cross-entropy with the labels, beside the divergence from the teacher.
        temperature: by which both networks' logits are divided in the divergence.
        shift: images are moved by up to this many pixels each way, and mirrored half of the time; 0: neither.
        batch: examples of a step.
    """

    rate: float
    labels: float
    temperature: float
    shift: int
    batch: int = 125


RECIPES = {
    "plain": Recipe(1e-3, 1.0, 1.0, 0), "softened": Recipe(3e-3, 0.2, 4.0, 4),
    "small-batches": Recipe(2e-3, 0.2, 4.0, 4, 40), "teacher": Recipe(4e-3, 0.0, 4.0, 4, 80),
}  # fmt: skip


def moved(images: Tensor, shift: int) -> Tensor:
    """Images moved by up to some pixels each way, the gap filled with zeros, and mirrored half of the time."""
    if shift == 0 or images.ndim != 4:
        return images
    count, height, width = len(images), *images.shape[2:]
    large = functional.pad(images, (shift,) * 4)
    rows = torch.randint(2 * shift + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * shift + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    found = large[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)  # channels last, which is faster


def trained(model: nn.Module, teacher: nn.Module, data: Batches, epochs: int, seed: int, recipe: Recipe) -> nn.Module:
    """A copy after training on labels and the teacher's probabilities."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    (inputs, labels), heat = (torch.cat(parts) for parts in zip(*data, strict=True)), recipe.temperature
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    steps = epochs * -(-len(inputs) // recipe.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=max(1, steps), pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(recipe.batch):
            given = moved(inputs[rows], recipe.shift)
            with torch.no_grad():
                goal = (teacher(given).flatten(0, -2) / heat).log_softmax(1)
            found = model(given).flatten(0, -2)
            loss = recipe.labels * functional.cross_entropy(found, labels[rows].flatten())
            apart = functional.kl_div((found / heat).log_softmax(1), goal, log_target=True, reduction="batchmean")
            loss = loss + heat**2 * apart
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def least(run: Callable[[], object], runs: int) -> float:
    """Milliseconds of processor time of the fastest run."""
    run()
    found = []
    for _ in range(runs):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return 1e3 * min(found)


def torch_milliseconds(model: nn.Module, inputs: Tensor, runs: int) -> float:
    """Of one forward in torch."""
    with torch.inference_mode():
        return least(lambda: model(inputs), runs)


def exported(model: nn.Module, inputs: Tensor) -> bytes:
    """The network as an ONNX file."""
    file = io.BytesIO()
    batch = {"inputs": {0: torch.export.Dim("batch", min=1, max=4096)}}
    program = torch.onnx.export(
        model, (inputs[:2],), dynamo=True, dynamic_shapes=batch, input_names=["x"], verbose=False
    )
    program.save(file)
    return file.getvalue()


def onnx_run(file: bytes) -> Forward:
    """The network in onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    key = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {key: inputs})[0]


def openvino_run(file: bytes) -> Forward:
    """The network in OpenVINO, one thread, in float32."""
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(io.BytesIO(file)), "CPU", settings).create_infer_request()
    return lambda inputs: request.infer([inputs])[0]


RUNTIMES: dict[str, Callable[[bytes], Forward]] = {"onnx": onnx_run, "openvino": openvino_run}


def milliseconds(models: dict[str, nn.Module], inputs: Tensor, runs: int) -> Record:
    """Of every network in torch and in onnxruntime, by batch."""
    found: Record = {}
    for name, model in models.items():
        for count in BATCHES:
            found[f"{name}_torch_{count}"] = torch_milliseconds(model, inputs[:count], runs)
        try:
            file = exported(model, inputs)
            runs_of = {runtime: make(file) for runtime, make in RUNTIMES.items()}
            outputs = runs_of["onnx"](inputs[:8].numpy())
        except Exception as error:  # torch's exporter and onnxruntime raise what they like
            found["not_exported"] = f"{type(error).__name__}: {error}"[:200]
            continue
        with torch.inference_mode():
            apart = np.abs(outputs - model(inputs[:8]).numpy()).max()
        found[f"{name}_onnx_difference"] = float(apart)
        for runtime, run in runs_of.items():
            for count in BATCHES:
                given = inputs[:count].numpy()
                found[f"{name}_{runtime}_{count}"] = least(lambda r=run, g=given: r(g), runs)
    return found


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


@STUDY.step(
    lambda o: grid(
        network=[o.network],
        examples=o.examples,
        share=o.shares,
        epochs=o.epochs,
        seed=o.seeds,
        together=o.together,
        method=o.methods,
        recipe=o.recipes,
    )
)
def removed(
    options: Options, network: str, examples: int, share: float, epochs: int, seed: int, together: int, method: str,
    recipe: str,
) -> Record:  # fmt: skip
    """One method at one share of the multiplications."""
    torch.set_num_threads(1)
    loaded = load(network, calibration_examples=examples, seed=seed)
    data, test = loaded.calibration, first(loaded.test, options.test)
    more = list(loaded.validation) if options.and_validation else []
    example = data[0][0]
    macs = multiplications(loaded.model, example)
    started = time.process_time()
    applied = MAKERS[method](loaded.model, data, options, int(share * macs), together)
    making = time.process_time() - started
    started = time.process_time()
    final = trained(applied, loaded.model, [*data, *more], epochs, seed, RECIPES[recipe])
    training = time.process_time() - started
    models = {"original": loaded.model, "applied": applied, "trained": final}
    if method != "torch-pruning":
        for name, passes in (("repaired", 0), *((("recovered", epochs),) if epochs and options.recovered else ())):
            models[name] = qc.recover(
                applied, data, teacher=loaded.model, epochs=passes, seed=seed, max_examples=examples, progress=False
            )
    accuracies = {name: score(model, test).means()["accuracy"] for name, model in models.items()}
    return {
        **accuracies, "macs": multiplications(final, example), "macs_before": macs, "bytes": stored_bytes(final),
        "bytes_before": stored_bytes(loaded.model), "cpu_making": making, "cpu_training": training,
        "test": options.test, "calibration": options.calibration, "and_validation": sum(len(part[0]) for part in more),
        **milliseconds({"before": loaded.model, "after": final}, example, options.runs),
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """Accuracy by method, then time."""
    key = ("network", "examples", "share", "epochs", "seed", "together", "method", "recipe", "and_validation")
    records = [{"recipe": "plain", "and_validation": 0} | record for record in STUDY.records("removed")]
    found = sorted(newest(records, *key), key=lambda r: [r[name] for name in key])
    for record in found:
        record["macs_share"] = record["macs"] / record["macs_before"]
        record["drop"] = record["original"] - record["trained"]
        for name in ("repaired", "recovered"):
            record[name] = f"{record[name]:.2f}" if name in record else ""
        record["smaller"] = record["bytes_before"] / record["bytes"]
        for runtime in ("torch", *RUNTIMES):
            for count in BATCHES:
                name = f"{runtime}_{count}"
                known = f"after_{name}" in record
                record[name] = f"{record[f'before_{name}'] / record[f'after_{name}']:.2f}x" if known else ""
    named = {
        "network": "{network}",
        "method": "{method}",
        "together": "{together}",
        "multiplications": "{macs_share:.1%}",
    }
    for record in found:
        record["seen"] = record["examples"] + record["and_validation"]
    accuracy = {
        **named, "examples": "{seen:,}", "epochs": "{epochs}", "recipe": "{recipe}",
        "top-1 before": "{original:.2f}",
        "applied": "{applied:.2f}", "repaired": "{repaired}", "trained": "{trained:.2f}", "drop": "{drop:+.2f}",
        "recovered": "{recovered}",
        "test": "{test:,}", "CPU s to choose": "{cpu_making:.0f}", "CPU s to train": "{cpu_training:.0f}",
    }  # fmt: skip
    speed = {
        **named, "bytes": "{bytes:,}", "smaller": "{smaller:.2f}x", "torch, 1": "{torch_1}",
        "torch, 32": "{torch_32}", "onnxruntime, 1": "{onnx_1}", "onnxruntime, 32": "{onnx_32}",
        "OpenVINO, 1": "{openvino_1}", "OpenVINO, 32": "{openvino_32}",
        "ms before (torch, 32)": "{before_torch_32:.1f}", "ms after": "{after_torch_32:.1f}",
    }  # fmt: skip
    return f"{table(found, accuracy)}\n{table(found, speed)}"


if __name__ == "__main__":
    STUDY.main()
