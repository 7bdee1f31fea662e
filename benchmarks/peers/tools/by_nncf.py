"""Weight compression by OpenVINO's NNCF.

Settings: ``mode``; groups of 64 columns where it is one of 4 bits.
"""

import nncf
import torch
from job import Job

GROUP = 64


def main() -> None:
    """Compress, and read the codes of every layer."""
    job = Job()
    model = job.network()
    mode = nncf.CompressWeightsMode(job.settings["mode"])
    four = {"group_size": GROUP, "ratio": 1.0, "all_layers": True} if "4" in job.settings["mode"] else {}
    example = (
        torch.zeros((1, 128), dtype=torch.int64) if job.given["network"] == "text-gpt" else torch.zeros(1, 3, 32, 32)
    )
    found = nncf.compress_weights(model, mode=mode, dataset=nncf.Dataset([example]), **four)
    for hook, module in found.named_modules():
        if type(module).__name__.endswith("WeightsDecompressor"):
            name = hook.partition("post_hooks.")[2].rpartition("__")[0].replace(":", ".")
            with torch.no_grad():
                values = module(found.get_parameter(name)).float().numpy()
            job.on_grid(name, values, module._scale.float().numpy())
    job.finish()


if __name__ == "__main__":
    main()
