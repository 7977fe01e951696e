"""What commands ask for alike: a recipe, where its run goes, and changes to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlhf_ray.config.schema import Recipe

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
OVERRIDES = HELP | {"allow_extra_args": True, "ignore_unknown_options": True}

Config = Annotated[Path, typer.Option("--config", "-c", help="The recipe (YAML).")]
RunDir = Annotated[
    str | None,
    typer.Option(
        "--run-dir",
        help="Where it goes and resumes from: a folder, or s3://BUCKET/PATH. [runs/NAME]",
    ),
]


def checked(
    config: Path, run_dir: str | None, overrides: Sequence[str], **allowed: bool
) -> tuple["Recipe", str]:
    """The recipe, and where its run goes.

    Raises RecipeError for what cannot be; see `check_recipe`.
    """
    from rlhf_ray.config.checks import check_recipe
    from rlhf_ray.config.load import load_recipe
    from rlhf_ray.config.resources import check_run_dir
    from rlhf_ray.durable.staging import folder_of

    recipe = load_recipe(config, overrides)
    place = run_dir or f"runs/{recipe.name}"
    check_recipe(recipe, **allowed)
    check_run_dir(folder_of(place))
    return recipe, place
