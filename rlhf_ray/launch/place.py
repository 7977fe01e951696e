"""Where a run lies: a folder, or objects behind a URL with a folder here to work in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.schema import Recipe
from rlhf_ray.console import View
from rlhf_ray.durable.attempts import take_over
from rlhf_ray.durable.claims import refuse_another
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.mirror import mirrored
from rlhf_ray.durable.staging import folder_of, is_url

Place = str | Path


@contextmanager
def opened(
    place: Place, recipe: Recipe, data: str, view: View, *, takeover: bool = False
) -> Iterator[RunFolder]:
    """The run folder for one driver; see `RunFolder`.

    Behind a URL its state is fetched before, and pushed until the end. `takeover`: a driver that
    still has it is ended.
    """
    folder = folder_of(place)
    if not is_url(place):
        if takeover:
            refuse_another(folder, recipe, data)  # a run nobody could go on with is left alone
            view.say(f"taking over from {take_over(folder) or 'nobody: the folder is free'}")
        yield RunFolder(folder, recipe, data=data)
        return
    with mirrored(str(place), folder, takeover=takeover, say=view.say) as mirror:
        view.say(f"run       {place}, worked on in {folder}")
        yield RunFolder(folder, recipe, data=data, push=mirror.push)
    view.say(f"kept in   {place}")
