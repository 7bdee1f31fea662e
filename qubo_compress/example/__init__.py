"""A small trained network with its examples, for the first steps and for documentation."""

from qubo_compress.example.examples import ExampleNetwork, example_network
from qubo_compress.example.network import ExampleCNN, InvertedResidual

__all__ = ["ExampleCNN", "ExampleNetwork", "InvertedResidual", "example_network"]
