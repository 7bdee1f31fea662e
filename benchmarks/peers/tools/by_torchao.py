"""Weights of Linear and Embedding layers by torchao, with scales of half-quadratic quantization.

Settings: ``bits``, and ``group``, the columns that share a scale; -1 for whole rows, which is the tool's default.
"""

import torch
from job import Job
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

LAYERS = nn.Linear | nn.Embedding


def main() -> None:
    """Quantize all Linear and Embedding layers."""
    job = Job()
    model, group = job.network(), job.settings["group"]
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{job.settings['bits']}"),
        granularity=PerAxis(0) if group == -1 else PerGroup(group),
        mapping_type=MappingType.SYMMETRIC, intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )  # fmt: skip
    quantize_(model, config, filter_fn=lambda module, _: isinstance(module, LAYERS))
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and hasattr(module.weight, "qdata"):
            zero = module.weight.zero_point
            job.rounded(
                f"{name}.weight",
                module.weight.qdata.numpy(),
                module.weight.scale.numpy(),
                zero.numpy() if zero.any() else None,
            )
    job.finish()


if __name__ == "__main__":
    main()
