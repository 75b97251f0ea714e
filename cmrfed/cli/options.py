"""Options and checks that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfed.core.errors import ConfigError

Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
TensorBoardFolder = Annotated[
    Path | None, typer.Option(help="TensorBoard log directory, as for `tensorboard --logdir`.")
]
MlflowUri = Annotated[str | None, typer.Option(help="MLflow tracking URI, such as that of a server or sqlite:///FILE.")]
Trackers = Annotated[
    list[str] | None, typer.Option("--tracker", metavar="NAME=ADDRESS", help="Track with an installed plugin too.")
]


def refuse_to_replace(out: Path, force: bool) -> None:
    """Refuse to write where something is, unless ``force``.

    Raises:
        ConfigError: ``out`` holds something.
    """
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", do="choose another folder, or add --force to replace it")


def cohort_override(data: list[Path]) -> str:
    """The override that names cohort folders."""
    from cmrfed.core.settings.strict_yaml import quoted

    return f"data.cohorts=[{', '.join(quoted(str(path.absolute())) for path in data)}]"
