"""The published formulation: one bit per filter, a binary code per layer, one unconstrained quadratic model.

Wang, Choong, Huang, Gerlinghoff, Goh, Liu, Luo: arXiv 2505.16332 (2025), Future Generation Computer Systems 174 (2026)
107908. Bit p[n,i] is 1 if filter i of layer n is pruned; the weights of layer n have b[n] = b_max - sum_k 2^k q[n,k]
bits. With a[n,i] the mean absolute weight of filter i,

    H(p, q) = L_p(p) + beta L_q(q) - gamma R(p, q),    L_p = sum_n (sum_i a[n,i] p[n,i])^2

**What is read and what is ours.** The abstract of the paper could be read. The bits, H, its two factors and L_p are
from summaries by others, which agree with each other. L_q, R, beta, gamma, b_max and the number of code bits could not
be read. Here L_q = sum_n q[n] . B[n] q[n] with any symmetric B[n], and R is the share of the weights' bits that is
saved,

    R = 1 - sum_n b[n] sum_i size[n] (1 - p[n,i]) / (b_max weights),

which is quadratic without auxiliary bits. Whether weights that read a pruned filter of the layer before also count as
saved is an option, :class:`Feed`. Sizes are not constrained: they are set by gamma.

**It is separable over layers** without feeds: H is a sum of one function per layer, and no bits of two layers meet in a
product. Within a layer, for a given number of pruned filters, L_p is least for those of least score, and L_q and R do
not depend on which are pruned. So sorting the filters and enumerating (number pruned, bits) gives the minimum:
:func:`minimum`. With feeds, bits of adjacent layers meet, and it is not separable.
"""

from __future__ import annotations

from qubo_compress.encodings.published.choices import bits_of_assignment, to_problem
from qubo_compress.encodings.published.layers import Feed, FilterLayer, squared_losses
from qubo_compress.encodings.published.objective import FiltersAndBits, Terms
from qubo_compress.encodings.published.sorting import bits_of_counts, layer_energies, minimum, to_sorted_problem

__all__ = [
    "Feed",
    "FilterLayer",
    "FiltersAndBits",
    "Terms",
    "bits_of_assignment",
    "bits_of_counts",
    "layer_energies",
    "minimum",
    "squared_losses",
    "to_problem",
    "to_sorted_problem",
]
