"""AdaRound by Qualcomm's AIMET, layer by layer.

Settings: ``bits``, ``iterations``; its guide advises 15,000 for fewer than 8 bits, and about 2,000 images.
"""

import json

import numpy as np
import torch
from job import Job, torchvision_without_kernels
from torch import nn

torchvision_without_kernels()
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters  # noqa: E402
from aimet_torch.nn import QuantizationMixin  # noqa: E402

BATCH = 32


def main() -> None:
    """Round all convolutions and Linear layers."""
    job = Job()
    torch.manual_seed(0)
    model, inputs = job.network(), job.inputs()
    for module in model.modules():
        if type(module).__module__.startswith("network_"):
            QuantizationMixin.ignore(type(module))  # blocks and shortcuts of ours, which hold no weights themselves
    batches = list(inputs.split(BATCH))
    parameters = AdaroundParameters(
        batches,
        len(batches),
        default_num_iterations=job.settings["iterations"],
        forward_fn=lambda net, batch: net(batch),
    )
    found = Adaround.apply_adaround(
        model, batches[0], parameters, str(job.folder), "codes", default_param_bw=job.settings["bits"]
    )
    steps = _scales(json.loads((job.folder / "codes.encodings").read_text()))
    layers = dict(model.named_modules())
    for name, module in found.named_modules():
        if isinstance(layers.get(name), nn.Conv2d | nn.Linear):
            weight, scale = module.weight.detach().numpy(), steps[f"{name}.weight"]
            # The tool leaves weights between codes; its users round them, which is rounding up or down as was learnt.
            job.rounded(f"{name}.weight", np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))), scale)
    job.finish()


def _scales(encodings: dict) -> dict:
    """Name of every weight -> its steps."""
    found = encodings.get("param_encodings", encodings)
    return {name: np.array([one["scale"] for one in each]) for name, each in found.items()}


if __name__ == "__main__":
    main()
