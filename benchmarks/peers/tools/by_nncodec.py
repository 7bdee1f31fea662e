"""ISO/IEC 15938-17 by Fraunhofer HHI's ``nncodec``: one step for all weights, dependent quantization, DeepCABAC.

Settings: those of ``nncodec.nn.encode``; the README of the package has dependent quantization on, and -75 for vectors.
The whole network, vectors included, is one bitstream; what is decoded from it comes back.
"""

import time

import numpy as np
from job import Job, torchvision_without_kernels

torchvision_without_kernels()
from nncodec.nn import decode, encode  # noqa: E402 - torchvision is one of its imports


def main() -> None:
    """Encode, decode, and check that the bitstream alone restores the network."""
    job = Job()
    started = time.process_time()
    settings = {"use_dq": True, "verbose": False, "results": str(job.folder)} | job.settings
    stream = encode(
        {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in job.weights.items()}, args=settings
    )
    encoded = time.process_time()
    found = decode(stream)
    for name, value in job.weights.items():
        job.changed(name, np.asarray(found[name]).reshape(value.shape))
    (job.folder / "stream.bin").write_bytes(bytes(stream))
    job.finish(cpu_encoding=encoded - started, cpu_decoding=time.process_time() - encoded)


if __name__ == "__main__":
    main()
