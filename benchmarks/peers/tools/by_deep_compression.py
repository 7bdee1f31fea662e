"""Deep Compression (Han, Mao & Dally, ICLR 2016) without its retraining: pruning, shared values, Huffman codes.

Weights below a threshold of their layer become zero; the others share 2^bits values of their layer by k-means that
starts from evenly spaced values; gaps between survivors, of a few bits with padding zeros, and numbers of values are
Huffman coded, with one table for each layer.

    for each weight: count (4 bytes) | values in 16 bits | table and code of the numbers | of the gaps

Settings: ``bits``, ``sparsity``. No sparsity means no gaps.
"""

import struct
from collections import Counter

import numpy as np
from bitarray import bitarray
from bitarray.util import canonical_decode, canonical_huffman
from job import Job
from sklearn.cluster import KMeans

GAP_BITS = 5
FEWEST = 512


def coded(numbers, most):
    """Canonical Huffman: code lengths in a byte each, then the bits."""
    counts = Counter(numbers.tolist())
    counts.setdefault(0 if 0 not in counts else (1 if 1 not in counts else 2), 0)  # the library needs two symbols
    codes, _, _ = canonical_huffman(counts)
    bits = bitarray()
    bits.encode(codes, numbers.tolist())
    table = np.zeros(most, np.uint8)
    for symbol, code in codes.items():
        table[symbol] = len(code)
    return struct.pack("<I", len(bits)) + table.tobytes() + bits.tobytes()


def decoded(data, most):
    """Inverse of :func:`coded`: numbers and the bytes that are left."""
    (length,) = struct.unpack_from("<I", data)
    table = np.frombuffer(data, np.uint8, most, 4)
    count = [0] * (int(table.max()) + 1)
    for size in table[table > 0]:
        count[size] += 1
    symbols = sorted(np.flatnonzero(table).tolist(), key=lambda s: (table[s], s))
    bits = bitarray()
    used = 4 + most + (length + 7) // 8
    bits.frombytes(bytes(data[4 + most : used]))
    return np.array(list(canonical_decode(bits[:length], count, symbols))), data[used:]


def gaps_of(places):
    """Gaps between survivors, with fillers where a gap is too long: numbers below 2^GAP_BITS, and which are fillers."""
    longest = 2**GAP_BITS - 1
    steps = np.diff(places, prepend=-1) - 1
    fillers = steps // (longest + 1)
    gaps = np.concatenate(
        [np.append(np.full(f, longest), s - f * (longest + 1)) for f, s in zip(fillers, steps, strict=True)]
    )
    real = np.concatenate([np.append(np.zeros(f, bool), True) for f in fillers])
    return gaps, real


def written(weight, settings):
    """Bytes of one weight."""
    flat, clusters = weight.reshape(-1), 2 ** settings["bits"]
    sparsity = settings["sparsity"]
    alive = np.abs(flat) > np.quantile(np.abs(flat), sparsity) if sparsity else np.ones(flat.size, bool)
    values = flat[alive]
    starts = np.linspace(values.min(), values.max(), clusters).reshape(-1, 1)
    found = KMeans(clusters, init=starts, n_init=1, max_iter=100).fit(values.reshape(-1, 1))
    table, numbers = found.cluster_centers_[:, 0].astype(np.float16), found.labels_.astype(np.int64)
    head = struct.pack("<I", values.size) + table.tobytes()
    if not sparsity:
        return head + coded(numbers, clusters)
    gaps, real = gaps_of(np.flatnonzero(alive))
    with_fillers = np.full(gaps.size, clusters)  # one number more stands for a zero
    with_fillers[real] = numbers
    return head + coded(with_fillers, clusters + 1) + coded(gaps, 2**GAP_BITS)


def read(data, shape, settings):
    """Inverse of :func:`written`: the weight, and the bytes that are left."""
    clusters, flat = 2 ** settings["bits"], np.zeros(int(np.prod(shape)), np.float32)
    table = np.append(np.frombuffer(data, np.float16, clusters, 4).astype(np.float32), np.float32(0))
    data = data[4 + 2 * clusters :]
    if not settings["sparsity"]:
        numbers, data = decoded(data, clusters)
        return table[numbers].reshape(shape), data
    numbers, data = decoded(data, clusters + 1)
    gaps, data = decoded(data, 2**GAP_BITS)
    flat[np.cumsum(gaps + 1) - 1] = table[numbers]
    return flat.reshape(shape), data


def main() -> None:
    """Write all weights, read them again, and give back what was read."""
    job, stream = Job(), bytearray()
    names = [name for name, weight in job.weights.items() if weight.ndim > 1 and weight.size >= FEWEST]
    for name in names:
        stream += written(job.weights[name], job.settings)
    data = memoryview(bytes(stream))
    for name in names:
        weight, data = read(data, job.weights[name].shape, job.settings)
        job.changed(name, weight)
    if len(data):
        raise ValueError(f"{len(data)} bytes were left over")
    (job.folder / "stream.bin").write_bytes(bytes(stream))
    job.finish()


if __name__ == "__main__":
    main()
