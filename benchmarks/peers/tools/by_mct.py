"""Mixed precision by Sony's Model Compression Toolkit: 2, 4 or 8 bits for each layer within a budget of weights.

The default target platform, whose weights have steps by row, and default settings; its activations are not used.
Normalisations are folded into weights by the tool, so that they come back as one and the tool's bias.
Settings: ``ratio`` of float weights to the budget.
"""

import numpy as np
import torch
from job import Job, torchvision_without_kernels
from torch import nn

torchvision_without_kernels()
import model_compression_toolkit as mct  # noqa: E402 - torchvision is one of its imports

BATCH = 50
FOLLOWS = {"conv1": "bn1", "conv2": "bn2"}
"""The normalisation that follows a convolution of a residual network."""


def main() -> None:
    """Choose bits, then round."""
    job = Job()
    model, inputs = job.network(), job.inputs()
    count = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    found, _ = mct.ptq.pytorch_post_training_quantization(
        model, lambda: ([batch.numpy()] for batch in inputs.split(BATCH)),
        target_resource_utilization=mct.core.ResourceUtilization(weights_memory=4 * count / job.settings["ratio"]),
        core_config=mct.core.CoreConfig(mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig()),
    )  # fmt: skip
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    bits = {}
    for name, module in found.named_modules():
        if not hasattr(module, "weights_quantizers") or "weight" not in module.weights_quantizers:
            continue
        ours = next(one for one in layers if name in (one.replace(".", "_"), one.replace(".", "_") + "_bn"))
        bits[ours] = _give(job, model, ours, module)
    if len(bits) != len(layers):
        raise ValueError(f"{len(bits)} of {len(layers)} layers were found in what the tool made")
    job.finish(bits=bits)


def _give(job: Job, model: nn.Module, name: str, module: nn.Module) -> int:
    """Codes of one layer, and the bias that its normalisation becomes."""
    quantizer = module.weights_quantizers["weight"]
    scale = np.asarray(quantizer.threshold_np, dtype=np.float64).reshape(-1) / 2 ** (quantizer.num_bits - 1)
    job.on_grid(f"{name}.weight", module.get_quantized_weights()["weight"].detach().cpu().numpy(), scale)
    bias = module.layer.bias.detach().cpu().numpy()
    head, _, last = name.rpartition(".")
    if last in FOLLOWS:
        before = f"{head}.{FOLLOWS[last]}".lstrip(".")
        norm = model.get_submodule(before)
        values = {"weight": np.ones_like(bias), "bias": bias, "running_mean": np.zeros_like(bias)}
        for part, value in (values | {"running_var": np.full_like(bias, 1.0 - norm.eps)}).items():
            job.changed(f"{before}.{part}", value)
    else:
        job.changed(f"{name}.bias", bias)
    return int(quantizer.num_bits)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
