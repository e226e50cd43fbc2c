"""Aligner: a small model that rewrites any model's answer into a better one (Ji et al., NeurIPS 2024)."""

__version__ = "0.1.0"
