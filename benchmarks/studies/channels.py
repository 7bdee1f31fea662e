"""Multiplications cut by removing channels: accuracy before and after training, bytes and milliseconds.

    python -m benchmarks.studies.channels --network cifar10-resnet20 --examples 2000 --epochs 3
    python -m benchmarks.studies.channels table

``products`` is ``groups="channel"`` with a budget of multiplications; ``torch-pruning`` its own magnitude importance of
whole groups, ranked over all layers, in small steps until the multiplications fit. It cannot follow shortcuts that pad
channels (issue 64 of its repository; the forward of the pruned ResNet fails), so there it prunes the inner channels of
the blocks only. Both results are trained in the same way: labels and the original's probabilities, Adam with a cosine,
batch normalisations in train mode, the same examples and epochs. ``repaired`` and ``recovered`` are ``qc.recover``
without and with these epochs, for which torch-pruning's result has no counterpart. Test examples are used only for the
figures.

Milliseconds are processor time of one thread, the least of several runs, of torch and of onnxruntime, each beside the
original in the same process; blank where the network's code does not export with a batch of any size. Records are
appended to ``benchmarks/results/channels.jsonl``.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
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

METHODS = ("products", "torch-pruning")
BATCHES = (1, 32)

STUDY = Study(
    __doc__, "channels", field="step", network="cifar10-resnet20", examples=[2_000], shares=[0.5], epochs=[3],
    seeds=[0], together=Option([1, 8], "channels of a layer that stay or leave together"),
    methods=Option(list(METHODS), choices=METHODS), test=Option(2_000, "test examples"), time_limit=10.0,
    calibration=Option(512, "examples that measure"), runs=Option(15, "runs of which the fastest counts"),
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


MAKERS: dict[str, Callable[..., nn.Module]] = {"products": by_products, "torch-pruning": by_torch_pruning}


def trained(model: nn.Module, teacher: nn.Module, data: Batches, epochs: int, seed: int) -> nn.Module:
    """A copy after training on labels and the teacher's probabilities."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model).train()
    inputs, labels = torch.cat([batch for batch, _ in data]), torch.cat([answers for _, answers in data])
    with torch.no_grad():
        goal = torch.cat([teacher(batch) for batch, _ in data]).log_softmax(1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    steps = epochs * -(-len(inputs) // 125)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(1, steps), pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(125):
            found = model(inputs[rows])
            loss = functional.cross_entropy(found, labels[rows])
            loss = loss + functional.kl_div(found.log_softmax(1), goal[rows], log_target=True, reduction="batchmean")
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


def session_of(model: nn.Module, inputs: Tensor) -> onnxruntime.InferenceSession:
    """The network in onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = io.BytesIO()
    batch = {"inputs": {0: torch.export.Dim("batch", min=1, max=4096)}}
    program = torch.onnx.export(
        model, (inputs[:2],), dynamo=True, dynamic_shapes=batch, input_names=["x"], verbose=False
    )
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), options)


def milliseconds(models: dict[str, nn.Module], inputs: Tensor, runs: int) -> Record:
    """Of every network in torch and in onnxruntime, by batch."""
    found: Record = {}
    for name, model in models.items():
        for count in BATCHES:
            found[f"{name}_torch_{count}"] = torch_milliseconds(model, inputs[:count], runs)
        try:
            session = session_of(model, inputs)
            key = session.get_inputs()[0].name
            session.run(None, {key: inputs[:8].numpy()})
        except Exception as error:  # torch's exporter and onnxruntime raise what they like
            found["not_exported"] = f"{type(error).__name__}: {error}"[:200]
            continue
        with torch.inference_mode():
            apart = np.abs(session.run(None, {key: inputs[:8].numpy()})[0] - model(inputs[:8]).numpy()).max()
        found[f"{name}_onnx_difference"] = float(apart)
        for count in BATCHES:
            given = {key: inputs[:count].numpy()}
            found[f"{name}_onnx_{count}"] = least(lambda s=session, g=given: s.run(None, g), runs)
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
    )
)
def removed(
    options: Options, network: str, examples: int, share: float, epochs: int, seed: int, together: int, method: str
) -> Record:
    """One method at one share of the multiplications."""
    torch.set_num_threads(1)
    loaded = load(network, calibration_examples=examples, seed=seed)
    data, test = loaded.calibration, first(loaded.test, options.test)
    example = data[0][0]
    macs = multiplications(loaded.model, example)
    started = time.process_time()
    applied = MAKERS[method](loaded.model, data, options, int(share * macs), together)
    making = time.process_time() - started
    started = time.process_time()
    final = trained(applied, loaded.model, data, epochs, seed)
    training = time.process_time() - started
    models = {"original": loaded.model, "applied": applied, "trained": final}
    if method == "products":
        for name, passes in (("repaired", 0), *((("recovered", epochs),) if epochs else ())):
            models[name] = qc.recover(
                applied, data, teacher=loaded.model, epochs=passes, seed=seed, max_examples=examples, progress=False
            )
    accuracies = {name: score(model, test).means()["accuracy"] for name, model in models.items()}
    return {
        **accuracies, "macs": multiplications(final, example), "macs_before": macs, "bytes": stored_bytes(final),
        "bytes_before": stored_bytes(loaded.model), "cpu_making": making, "cpu_training": training,
        "test": options.test, "calibration": options.calibration,
        **milliseconds({"before": loaded.model, "after": final}, example, options.runs),
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """Accuracy by method, then time."""
    key = ("network", "examples", "share", "epochs", "seed", "together", "method")
    found = sorted(newest(STUDY.records("removed"), *key), key=lambda r: [r[name] for name in key])
    for record in found:
        record["macs_share"] = record["macs"] / record["macs_before"]
        record["drop"] = record["original"] - record["trained"]
        for name in ("repaired", "recovered"):
            record[name] = f"{record[name]:.2f}" if name in record else ""
        record["smaller"] = record["bytes_before"] / record["bytes"]
        for runtime in ("torch", "onnx"):
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
    accuracy = {
        **named, "examples": "{examples:,}", "epochs": "{epochs}", "top-1 before": "{original:.2f}",
        "applied": "{applied:.2f}", "repaired": "{repaired}", "trained": "{trained:.2f}", "drop": "{drop:+.2f}",
        "recovered": "{recovered}",
        "test": "{test:,}", "CPU s to choose": "{cpu_making:.0f}", "CPU s to train": "{cpu_training:.0f}",
    }  # fmt: skip
    speed = {
        **named, "bytes": "{bytes:,}", "smaller": "{smaller:.2f}x", "torch, 1": "{torch_1}",
        "torch, 32": "{torch_32}", "onnxruntime, 1": "{onnx_1}", "onnxruntime, 32": "{onnx_32}",
        "ms before (torch, 32)": "{before_torch_32:.1f}", "ms after": "{after_torch_32:.1f}",
    }  # fmt: skip
    return f"{table(found, accuracy)}\n{table(found, speed)}"


if __name__ == "__main__":
    STUDY.main()
