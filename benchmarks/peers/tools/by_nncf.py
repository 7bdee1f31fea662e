"""Weight compression by OpenVINO's NNCF.

Settings: ``mode``, and ``group``, the columns that share a scale where it is one of 4 bits: its default of 64, fewer
where 64 do not divide a row, or -1 for whole rows, whose scales take fewer bytes. Scales are estimated from data.
Convolutions always have 8 bits.
"""

import nncf
import torch
from job import Job

BATCH = 16


def main() -> None:
    """Compress, and read the codes of every layer."""
    job = Job()
    model = job.network()
    mode = nncf.CompressWeightsMode(job.settings["mode"])
    four = {}
    if "4" in job.settings["mode"]:
        narrow = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        four = {"group_size": job.settings["group"], "ratio": 1.0, "all_layers": True, "scale_estimation": True}
        four["advanced_parameters"] = narrow
    found = nncf.compress_weights(model, mode=mode, dataset=nncf.Dataset(list(job.inputs().split(BATCH))), **four)
    for hook, module in found.named_modules():
        if type(module).__name__.endswith("WeightsDecompressor"):
            name = hook.partition("post_hooks.")[2].rpartition("__")[0].replace(":", ".")
            with torch.no_grad():
                values = module(found.get_parameter(name)).float().numpy()
            job.on_grid(name, values, module._scale.float().numpy())
    job.finish()


if __name__ == "__main__":
    main()
