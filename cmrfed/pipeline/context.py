"""What all steps of a run share, made once when it begins and handed from step to step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from flwr.serverapp import Grid

from cmrfed.config.experiment import Experiment, check_fits_sites
from cmrfed.core.progress import say
from cmrfed.data.preparation.account import facts
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.pipeline.data import Data, describe_sites, open_data, write_sites
from cmrfed.pipeline.files.contents import write_contents
from cmrfed.pipeline.files.record import RecordWriter, SiteEntry, SplitSizes
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.trained import TrainedRun


@dataclass
class RunContext:
    """A run at work. Made by `begin` where sites are simulated, and by `begin_deployed` where they are elsewhere."""

    run_dir: Path
    plan: PrivacyPlan
    record: RecordWriter
    grid: Grid
    """The sites."""
    data: Data | None = None
    """None: the patients are elsewhere."""
    on_round: Callable[[], None] = lambda: None
    """Called when a round is saved."""

    @property
    def experiment(self) -> Experiment:
        """What is run."""
        return self.plan.experiment

    @cached_property
    def trained(self) -> TrainedRun:
        """Generators and claim of this run; to be asked for when training has ended."""
        return TrainedRun(self.run_dir, self.record.content, self.plan)


def begin(
    experiment: Experiment, run_dir: Path, *, grid: Grid | None = None, on_round: Callable[[], None] = lambda: None
) -> RunContext:
    """Get data, site folders and record of a simulated run ready to train.

    Args:
        experiment: What to do.
        run_dir: The run folder.
        grid: The sites; None: in this process.
        on_round: Called when a round is saved.

    Raises:
        PrivacyError: The target of the recipe cannot be met.
        ConfigError: The folder is that of another run, or the cohorts do not fit the recipe.
        DataError: There are too few patients, or a file is damaged.
    """
    torch.set_num_threads(experiment.compute.threads)
    plan = PrivacyPlan(experiment)
    promise = plan.text  # a target that cannot be met shows before anything is touched
    record = RecordWriter(run_dir, experiment)
    with record.timed("data"):
        data = open_data(experiment, run_dir)
        record.save()  # from here on the folder is this experiment's
        data.split.write(run_dir)
        roots = write_sites(data, run_dir, experiment)
        write_contents(run_dir, None)
    say(promise)
    record.set(privacy_plan=plan.rows)
    sizes = SplitSizes(train=len(data.train), holdout=len(data.holdout))
    record.set(sites=tuple(describe_sites(data)), split=sizes)
    record.set(data=facts(data.holdout.header.account, (p.notes for c in (*data.sites, data.holdout) for p in c)))
    return RunContext(run_dir, plan, record, grid or LocalGrid(roots), data, on_round)


def begin_deployed(experiment: Experiment, run_dir: Path, grid: Grid, sites: Sequence[str]) -> RunContext:
    """Get the record of a run over a network ready; patients are at the sites.

    Args:
        experiment: What to do; its cohorts are not used.
        run_dir: The run folder.
        grid: The network.
        sites: Names of the sites, in order of their styles.

    Raises:
        PrivacyError: The target of the recipe cannot be met.
        ConfigError: The folder is that of another run.
        DataError: Its run.json is damaged.
    """
    torch.set_num_threads(experiment.compute.threads)
    check_fits_sites(experiment)
    plan = PrivacyPlan(experiment)
    promise = plan.text
    record = RecordWriter(run_dir, experiment)
    record.set(sites=tuple(SiteEntry(name=name) for name in sites), privacy_plan=plan.rows, problem=None)
    write_contents(run_dir, None)
    say(promise)
    return RunContext(run_dir, plan, record, grid)
