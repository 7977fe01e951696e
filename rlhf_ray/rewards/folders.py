"""Which folders hold judges? Asked before anything heavy loads.

A judge of ours has a card; another folder must be a sequence classifier with one label. What a hub
name holds shows when it is fetched.
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.folders import is_local, nearest_file, read_config
from rlhf_ray.durable.manifest import verify_model
from rlhf_ray.errors import BadData
from rlhf_ray.rewards.card import read_card


def judge_folders(folders: Sequence[str]) -> dict[str, str]:
    """Folders, or hub names, of judges by the name they are shown under: the shortest end of their
    path that tells them apart.

    Raises BadData for what is surely no judge, and for one that is named twice.
    """
    for folder in folders:
        _check(folder)
    paths = [Path(one) for one in folders]
    places = [one.resolve() if one.is_dir() else one for one in paths]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise BadData(f"judge {folder} is named twice; name each judge once")
    parts = [(one.absolute() if one.is_dir() else one).parts for one in paths]
    return dict(zip(_apart(parts), folders, strict=True))


def _apart(parts: Sequence[Sequence[str]]) -> list[str]:
    """Each path's shortest end, of equal length, that no other path has."""
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return names


def _check(folder: str) -> None:
    """Raises BadData for a folder without a model, or with one that gives no score."""
    path = Path(folder)
    if is_local(folder) and not path.is_dir():
        raise BadData(f"judge {folder} is not a folder{nearest_file(path)}")
    if not path.is_dir():
        return
    config = read_config(folder)
    if not config:
        raise BadData(
            f"judge {folder} holds no model: it has no config.json that can be read; name "
            "judges/NAME of a run, or a Hugging Face folder"
        )
    verify_model(folder)
    if read_card(path) is not None:
        return
    kinds = config.get("architectures") or []
    if not any("SequenceClassification" in kind for kind in kinds):
        raise BadData(
            f"judge {folder} holds {', '.join(kinds) or 'a model of no known kind'} and no "
            "judge.json; a judge is a sequence classifier with one label, or what "
            "`rlhf-ray judge train` wrote"
        )
    # Hugging Face writes neither key for its own default of two labels.
    labels = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    if labels != 1:
        raise BadData(f"judge {folder} has {labels} labels; a judge gives one score per response")
