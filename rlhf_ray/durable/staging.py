"""Where on this machine do things lie that can be had again: models made before, and the folders in
which runs behind URLs are worked on?"""

import hashlib
import os
import socket
from pathlib import Path

from rlhf_ray.durable.objects import checked_url
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
    url = checked_url(str(place))
    # Hosts may share this place, but not a folder to work in.
    sha = hashlib.sha256(f"{url} {socket.gethostname()}".encode()).hexdigest()
    return cache_folder() / "runs" / f"{url.rpartition('/')[2]}-{sha[:12]}"


def local(place: str) -> Path:
    """The folder that a command reads. Raises BadData for a URL, RecipeError for one of no run."""
    if is_url(place):
        raise BadData(
            f"{place} is no folder here; to look at the run: rlhf-ray fetch {checked_url(place)} "
            "FOLDER (to scale it, give the folder its driver works in, on that machine)"
        )
    return Path(place)
