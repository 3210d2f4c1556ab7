"""Proofs that no point of a ball around an image is classified wrongly: lower bounds of robust accuracy."""

from advbench.certify.certify import NORMS, certify
from advbench.certify.graph import Graph, NoBound, traced

__all__ = ["NORMS", "Graph", "NoBound", "certify", "traced"]
