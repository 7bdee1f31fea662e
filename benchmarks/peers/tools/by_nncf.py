"""Weight compression by OpenVINO's NNCF.

Settings: ``mode``; groups of 64 columns and scales estimated from data where it is one of 4 bits.
"""

import nncf
import torch
from job import Job

GROUP, BATCH = 64, 16


def main() -> None:
    """Compress, and read the codes of every layer."""
    job = Job()
    model = job.network()
    mode = nncf.CompressWeightsMode(job.settings["mode"])
    more = {"group_size": GROUP, "ratio": 1.0, "all_layers": True, "scale_estimation": True}
    four = more if "4" in job.settings["mode"] else {}
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
