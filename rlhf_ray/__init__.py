"""Iterative online RLHF with a pool of reward models, on Ray, vLLM and DeepSpeed."""

__version__ = "0.1.0"
