"""Where randomness comes from: every draw is a function of a key, never of arrival order."""

import hashlib

import numpy as np


def seed_of(run_seed: int, purpose: str, *parts: object) -> int:
    """A 63-bit seed for (run, purpose, ...); equal keys give equal seeds on every machine."""
    key = "|".join([str(run_seed), purpose, *map(str, parts)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


def generator(run_seed: int, purpose: str, *parts: object) -> np.random.Generator:
    """A NumPy generator of its own for one key."""
    return np.random.Generator(np.random.Philox(key=seed_of(run_seed, purpose, *parts)))
