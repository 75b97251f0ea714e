"""Names of the sets that segmenters are tested on."""

from collections.abc import Iterable

from cmrfed.core.errors import EvaluationError
from cmrfed.evaluation.results.result import slug

HOLDOUT, RECONSTRUCTION = "holdout", "reconstruction"
"""Test sets that are not an external cohort."""


def check_test_names(external: Iterable[str]) -> None:
    """See that every test set has a name of its own in ids.

    Raises:
        EvaluationError: Two external cohorts are written alike, or one like a set of the evaluation itself.
    """
    taken = {slug(name): name for name in (HOLDOUT, "hold-out", RECONSTRUCTION, "training", "synthetic")}
    for name in external:
        if slug(name) in taken:
            raise EvaluationError(
                f"the name {name} of an external cohort is taken already",
                got=f"{name} and {taken[slug(name)]}",
                expected="names that differ in letters and digits, and are not those of the evaluation's own sets",
                do="give the cohort another name",
            )
        taken[slug(name)] = name
