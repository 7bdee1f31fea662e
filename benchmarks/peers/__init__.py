"""Compressors of other packages on our networks, each in a separate environment and process.

``roster`` lists them, ``tools`` holds the script that each runs, ``environments`` installs and starts them, ``repair``
and ``container`` do for all of them what our own pipeline does for ours: match normalisations and biases, and write one
file that restores the network. ``curves`` compares at equal bytes.
"""
