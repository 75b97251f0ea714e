"""Flower ServerApp: trains the recipe named in the run config over the sites of the grid.

Run config: ``recipe`` (file), ``set`` (overrides, separated by spaces), ``run-dir``, ``data-root`` (folder to which the
recipe's cohorts are relative), ``sites`` (names, separated by spaces, of a deployed federation, whose patients are at
the sites; empty: they are simulated). Paths are absolute, since Flower starts this app in a folder of its own.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.errors import ConfigError
from cmrfed.core.owner import owned
from cmrfed.federation.flower import check_version
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.run import RUN_FOLDER, run_deployed
from cmrfed.pipeline.training import train

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train both stages; `cmrfed run` with the same recipe and run folder then goes on to synthesis."""
    check_version()
    run_dir = _absolute(context.run_config, "run-dir")
    experiment = read_experiment(context.run_config)
    if sites := str(context.run_config.get("sites", "")).split():
        run_deployed(experiment, run_dir, grid, sites)
        return
    with owned(run_dir, RUN_FOLDER):
        train(begin(experiment, run_dir, grid=grid))


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """Resolve the recipe of a run config.

    Raises:
        ConfigError: A path is missing or relative, or the recipe cannot be used.
    """
    experiment = resolve(_absolute(config, "recipe"), shlex.split(str(config["set"])))
    data = experiment.data
    if config.get("sites") or all(Path(path).is_absolute() for path in [*data.cohorts, *data.external.values()]):
        return experiment
    root = _absolute(config, "data-root")
    placed = {
        "cohorts": tuple(str(root / path) for path in data.cohorts),
        "external": {name: str(root / path) for name, path in data.external.items()},
    }
    return experiment.model_copy(update={"data": data.model_copy(update=placed)})


def _absolute(config: Mapping[str, Any], key: str) -> Path:
    path = Path(str(config[key]))
    if not path.is_absolute():
        raise ConfigError(
            f"the run config needs {key}",
            got=repr(config[key]),
            expected="an absolute path",
            do=f"flwr run . -c \"{key}='/absolute/path'\"",
        )
    return path
