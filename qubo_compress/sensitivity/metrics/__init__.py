"""Metrics: ways to measure what each choice and each pair of choices costs the network, one file or folder each."""
