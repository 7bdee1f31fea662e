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
from bitarray.util import canonical_decode, huffman_code
from job import Job
from sklearn.cluster import KMeans

GAP_BITS = 5
FEWEST = 512
"""Smaller tensors, and vectors, stay as they are."""


def lengths_of(numbers, most):
    """Length of the code of every number below ``most``; 0 for those that do not occur."""
    counts = Counter(numbers.tolist())
    if len(counts) == 1:
        counts[(numbers[0] + 1) % most] = 0  # a code needs two symbols
    found = np.zeros(most, np.uint8)
    for symbol, code in huffman_code(counts).items():
        found[symbol] = len(code)
    return found


def in_order(lengths):
    """Symbols of a canonical code: shorter codes first, smaller numbers first among codes of one length."""
    return sorted(np.flatnonzero(lengths).tolist(), key=lambda symbol: (lengths[symbol], symbol))


def codes_of(lengths):
    """The canonical code of these lengths: the next code is the last one plus 1, with zeros appended."""
    found, code, before = {}, 0, 0
    for symbol in in_order(lengths):
        length = int(lengths[symbol])
        code <<= length - before
        found[symbol] = bitarray(format(code, f"0{length}b"))
        code, before = code + 1, length
    return found


def coded(numbers, most):
    """Canonical Huffman: code lengths in a byte each, then the bits."""
    lengths, bits = lengths_of(numbers, most), bitarray()
    bits.encode(codes_of(lengths), numbers.tolist())
    return struct.pack("<I", len(bits)) + lengths.tobytes() + bits.tobytes()


def decoded(data, most):
    """Inverse of :func:`coded`: numbers and the bytes that are left."""
    (length,) = struct.unpack_from("<I", data)
    lengths = np.frombuffer(data, np.uint8, most, 4)
    counts = np.bincount(lengths)
    counts[0] = 0
    bits = bitarray()
    used = 4 + most + (length + 7) // 8
    bits.frombytes(bytes(data[4 + most : used]))
    return np.array(list(canonical_decode(bits[:length], counts.tolist(), in_order(lengths)))), data[used:]


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
    """Bytes of one weight, and the values that they stand for."""
    flat, clusters = weight.reshape(-1), 2 ** settings["bits"]
    sparsity = settings["sparsity"]
    alive = np.abs(flat) > np.quantile(np.abs(flat), sparsity) if sparsity else np.ones(flat.size, bool)
    values = flat[alive]
    starts = np.linspace(values.min(), values.max(), clusters).reshape(-1, 1)
    found = KMeans(clusters, init=starts, n_init=1, max_iter=100).fit(values.reshape(-1, 1))
    table, numbers = found.cluster_centers_[:, 0].astype(np.float16), found.labels_.astype(np.int64)
    head, meant = struct.pack("<I", values.size) + table.tobytes(), np.zeros(flat.size, np.float32)
    meant[alive] = table[numbers]
    meant = meant.reshape(weight.shape)
    if not sparsity:
        return head + coded(numbers, clusters), meant
    gaps, real = gaps_of(np.flatnonzero(alive))
    with_fillers = np.full(gaps.size, clusters)  # one number more stands for a zero
    with_fillers[real] = numbers
    return head + coded(with_fillers, clusters + 1) + coded(gaps, 2**GAP_BITS), meant


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
    job, stream, meant = Job(), bytearray(), {}
    names = [name for name, weight in job.weights.items() if weight.ndim > 1 and weight.size >= FEWEST]
    for name in names:
        data, meant[name] = written(job.weights[name], job.settings)
        stream += data
    data = memoryview(bytes(stream))
    for name in names:
        weight, data = read(data, job.weights[name].shape, job.settings)
        if not np.array_equal(weight, meant[name]):
            raise ValueError(f"{name} was read otherwise than it was written")
        job.changed(name, weight)
    if len(data):
        raise ValueError(f"{len(data)} bytes were left over")
    (job.folder / "stream.bin").write_bytes(bytes(stream))
    job.finish()


if __name__ == "__main__":
    main()
