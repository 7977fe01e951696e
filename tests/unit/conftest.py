"""Fixtures of the tests that need no Ray."""

import uuid
from dataclasses import replace

import pytest

from rlhf_ray.durable import objects
from rlhf_ray.durable.attempts import Owner


@pytest.fixture
def url(elsewhere: None) -> str:
    """A place for a run of a test."""
    return f"memory://runs/{uuid.uuid4().hex}"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drivers of these tests are one process; each says that it is on a host of its own."""
    hosts, here = iter(range(1000)), Owner.here()
    monkeypatch.setattr(
        Owner, "here", lambda: replace(here, host=f"host-{(n := next(hosts))}", born=f"boot-{n} 1")
    )
    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    monkeypatch.setattr(objects, "AWAY_S", 0.05)
