"""Plain rounding to the nearest code, which any general compressor then packs.

Settings: ``step``, one for all weights; or ``bits``, with a step for each row from its largest weight.
"""

import numpy as np
from job import Job

FEWEST = 512
"""Smaller tensors, and vectors, stay as they are."""


def main() -> None:
    """Round every weight of two or more axes."""
    job = Job()
    for name, weight in job.weights.items():
        if weight.ndim < 2 or weight.size < FEWEST:
            continue
        if "step" in job.settings:
            scale = np.array([job.settings["step"]], np.float16).astype(np.float32)
        else:
            most = np.abs(weight.reshape(len(weight), -1)).max(1) / (2 ** (job.settings["bits"] - 1) - 1)
            scale = np.maximum(most, 1e-7).astype(np.float16).astype(np.float32)
        job.rounded(name, np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))), scale)
    job.finish()


if __name__ == "__main__":
    main()
