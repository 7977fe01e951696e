"""Sampling responses with vLLM, and the contexts a bandit chooses on."""
