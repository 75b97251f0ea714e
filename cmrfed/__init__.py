"""CMRFed: federated generation of synthetic, labelled short-axis cardiac MRI.

The names in ``__all__`` are the Python API (docs/api.md). Their paths are stable; those of the modules behind them are
not. Each is imported when it is first used, so that ``import cmrfed`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmrfed.api import build_generator as build_generator
    from cmrfed.api import draw_dataset as draw_dataset
    from cmrfed.api import load_recipe as load_recipe
    from cmrfed.api import phantom_cohort as phantom_cohort
    from cmrfed.api import train_generator as train_generator
    from cmrfed.config.experiment import Experiment as Experiment
    from cmrfed.core.errors import CmrfedError as CmrfedError
    from cmrfed.data.cohort import Cohort as Cohort
    from cmrfed.data.phantom import write_phantom as write_phantom
    from cmrfed.data.preparation.prepare import PrepareConfig as PrepareConfig
    from cmrfed.data.preparation.prepare import prepare as prepare
    from cmrfed.data.preparation.verify import verify as verify
    from cmrfed.data.settings import PhantomConfig as PhantomConfig
    from cmrfed.data.synthetic import SyntheticDataset as SyntheticDataset
    from cmrfed.evaluation.evaluate import evaluate as evaluate
    from cmrfed.evaluation.results.reading import read_evaluation as read_evaluation
    from cmrfed.evaluation.results.result import EvaluationReport as EvaluationReport
    from cmrfed.evaluation.results.result import Metric as Metric
    from cmrfed.evaluation.settings import EvaluationConfig as EvaluationConfig
    from cmrfed.generators.condition import Condition as Condition
    from cmrfed.generators.generator import Generator as Generator
    from cmrfed.generators.settings import GeneratorSettings as GeneratorSettings
    from cmrfed.pipeline.privacy.plan import plan_privacy as plan_privacy
    from cmrfed.pipeline.privacy.plan import plan_text as plan_text
    from cmrfed.pipeline.run import run as run
    from cmrfed.privacy.accountant import Epsilon as Epsilon
    from cmrfed.privacy.accountant import epsilon as epsilon
    from cmrfed.privacy.event import PrivacyEvent as PrivacyEvent
    from cmrfed.privacy.ledger.ledger import PrivacyLedger as PrivacyLedger
    from cmrfed.privacy.ledger.statement import LedgerStatement as LedgerStatement
    from cmrfed.privacy.ledger.statement import read_statement as read_statement
    from cmrfed.synthesis.settings import SynthesisConfig as SynthesisConfig
    from cmrfed.training.settings import TrainingConfig as TrainingConfig

__version__ = "0.2.0"

_PLACES = {
    "build_generator": "cmrfed.api",
    "draw_dataset": "cmrfed.api",
    "load_recipe": "cmrfed.api",
    "phantom_cohort": "cmrfed.api",
    "train_generator": "cmrfed.api",
    "Experiment": "cmrfed.config.experiment",
    "CmrfedError": "cmrfed.core.errors",
    "Cohort": "cmrfed.data.cohort",
    "PhantomConfig": "cmrfed.data.settings",
    "write_phantom": "cmrfed.data.phantom",
    "PrepareConfig": "cmrfed.data.preparation.prepare",
    "prepare": "cmrfed.data.preparation.prepare",
    "verify": "cmrfed.data.preparation.verify",
    "SyntheticDataset": "cmrfed.data.synthetic",
    "EvaluationConfig": "cmrfed.evaluation.settings",
    "evaluate": "cmrfed.evaluation.evaluate",
    "read_evaluation": "cmrfed.evaluation.results.reading",
    "EvaluationReport": "cmrfed.evaluation.results.result",
    "Metric": "cmrfed.evaluation.results.result",
    "Condition": "cmrfed.generators.condition",
    "Generator": "cmrfed.generators.generator",
    "GeneratorSettings": "cmrfed.generators.settings",
    "plan_privacy": "cmrfed.pipeline.privacy.plan",
    "plan_text": "cmrfed.pipeline.privacy.plan",
    "run": "cmrfed.pipeline.run",
    "Epsilon": "cmrfed.privacy.accountant",
    "epsilon": "cmrfed.privacy.accountant",
    "PrivacyEvent": "cmrfed.privacy.event",
    "PrivacyLedger": "cmrfed.privacy.ledger.ledger",
    "LedgerStatement": "cmrfed.privacy.ledger.statement",
    "read_statement": "cmrfed.privacy.ledger.statement",
    "SynthesisConfig": "cmrfed.synthesis.settings",
    "TrainingConfig": "cmrfed.training.settings",
}
"""Name => the module that has it."""

__all__ = [
    "CmrfedError",
    "Cohort",
    "Condition",
    "Epsilon",
    "EvaluationConfig",
    "EvaluationReport",
    "Experiment",
    "Generator",
    "GeneratorSettings",
    "LedgerStatement",
    "Metric",
    "PhantomConfig",
    "PrepareConfig",
    "PrivacyEvent",
    "PrivacyLedger",
    "SynthesisConfig",
    "SyntheticDataset",
    "TrainingConfig",
    "__version__",
    "build_generator",
    "draw_dataset",
    "epsilon",
    "evaluate",
    "load_recipe",
    "phantom_cohort",
    "plan_privacy",
    "plan_text",
    "prepare",
    "read_evaluation",
    "read_statement",
    "run",
    "train_generator",
    "verify",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    """A name of the API, imported now (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
