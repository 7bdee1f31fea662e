"""GPTQ by Brevitas: codes in order of the inputs' second moments, errors passed on to later columns.

As its example of ImageNet classification: scales by row of least squared error, ``act_order``, the first convolution in
8 bits. Settings: ``bits``.
"""

import torch
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import Int8WeightPerChannelFloatMSE
from job import Job
from torch import nn

BATCH = 50


def main() -> None:
    """Quantize all convolutions and linear layers."""
    job = Job()
    model, inputs = job.network(), job.inputs()
    settings = {"weight_quant": Int8WeightPerChannelFloatMSE, "return_quant_tensor": False}
    bits = job.settings["bits"]
    layers = {
        nn.Conv2d: (QuantConv2d, {**settings, "weight_bit_width": _bits_of(bits)}),
        nn.Linear: (QuantLinear, {**settings, "weight_bit_width": bits}),
    }
    model = layerwise_quantize(model, compute_layer_map=layers).eval()
    with torch.no_grad():
        model(inputs[:2])  # scales are computed by the first run
    how = {"act_order": True, "use_quant_activations": False, "create_weight_orig": False}
    with torch.no_grad(), gptq_mode(model, group_of_parallel_layers=_parallel(model), **how) as gptq:
        for _ in range(gptq.num_layers):
            for batch in inputs.split(BATCH):
                gptq.model(batch)
            gptq.update()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, QuantConv2d | QuantLinear):
                weight = module.quant_weight()
                job.on_grid(f"{name}.weight", weight.value.numpy(), weight.scale.numpy())
    job.finish()


def _parallel(model: nn.Module) -> list[list[str]]:
    """Queries, keys and values read the same inputs, so that one run over the examples serves all three."""
    heads = [name.removesuffix("query") for name, _ in model.named_modules() if name.endswith(".query")]
    return [[f"{head}{part}" for part in ("query", "key", "value")] for head in heads]


def _bits_of(bits: int):
    """Bits of a convolution: 8 for the first, which has three channels."""
    from brevitas.inject import value

    @value
    def weight_bit_width(module):
        return 8 if module.in_channels == 3 else bits

    return weight_bit_width


if __name__ == "__main__":
    main()
