"""Weights of Linear layers in groups of columns by torchao, with scales of half-quadratic quantization.

Settings: ``bits``.
"""

import torch
from job import Job
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

GROUP = 32


def main() -> None:
    """Quantize all Linear layers."""
    job = Job()
    model = job.network()
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{job.settings['bits']}"), granularity=PerGroup(GROUP),
        mapping_type=MappingType.SYMMETRIC, intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )  # fmt: skip
    quantize_(model, config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "qdata"):
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
