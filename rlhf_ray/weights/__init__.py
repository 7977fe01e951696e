"""Weights on their way from the learner into vLLM."""
