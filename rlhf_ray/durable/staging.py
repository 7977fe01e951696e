"""Where on this machine do things lie that can be had again: models made before, and the folders in
which runs behind URLs are worked on?"""

import hashlib
import os
from pathlib import Path

from rlhf_ray.durable.objects import check_url
from rlhf_ray.errors import BadData


def cache_folder() -> Path:
    """`RLHF_RAY_CACHE`, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RLHF_RAY_CACHE") or Path(home) / "rlhf_ray")


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def folder_of(place: str | Path) -> Path:
    """The folder that a driver works in: the place itself, or one of its own for a URL.

    Raises RecipeError for a URL that runs cannot be kept behind.
    """
    if not is_url(place):
        return Path(place)
    check_url(url := str(place))
    name = url.rstrip("/").rpartition("/")[2]
    return cache_folder() / "runs" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def local(place: str) -> Path:
    """The folder that a command reads. Raises BadData for a URL."""
    if is_url(place):
        raise BadData(f"{place} is no folder here; fetch it first: rlhf-ray fetch {place} FOLDER")
    return Path(place)
