"""Errors that a user can act on: what happened, what was got, what was expected, what to do."""

import contextlib
import json
import os
import pathlib

ERROR_FILE = "CMRFED_ERROR_FILE"
"""Environment variable: the file that a command which fails writes its error to, for the program that started it."""


def leave_error(text: str, code: str | None = None) -> None:
    """Write an error as JSON to the file that `ERROR_FILE` names, if it names one that can be written."""
    path = os.environ.get(ERROR_FILE)
    if path:
        with contextlib.suppress(OSError):
            pathlib.Path(path).write_text(json.dumps({"error": text, "code": code}), encoding="utf-8")


class CmrfedError(Exception):
    """Base of every error that is reported to the user as one paragraph, without a traceback.

    Args:
        what: One sentence: what went wrong.
        got: What was found.
        expected: What would have been accepted.
        do: What the user can do about it.
        code: The kind of error, for code that depends on it; sentences may change.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        do: str | None = None,
        code: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.do, self.code = what, got, expected, do, code
        parts = [what.rstrip(".") + "."]
        parts += [f"Got: {got}."] if got is not None else []
        parts += [f"Expected: {expected}."] if expected is not None else []
        parts += [f"Do: {do.rstrip('.')}."] if do else []
        super().__init__(" ".join(parts))


class ConfigError(CmrfedError):
    """A recipe, an override or an argument cannot be used."""


class InUse(CmrfedError):
    """Another process owns a run folder, a coordinator, a site or a ledger; nothing was touched."""


class DataError(CmrfedError):
    """A scan, a cohort or a synthetic data set cannot be used."""


class FederationError(CmrfedError):
    """The federation cannot go on: no quorum, no usable reply, or a state of another run."""


class SiteRefused(CmrfedError):
    """A site declines a request; the reason travels to the server as a normal reply."""


class PrivacyError(CmrfedError):
    """What was asked cannot be done with a privacy guarantee, or the record of what was spent is damaged."""


class PrivacyBudgetExhausted(SiteRefused):
    """The next training would spend more than the site allows; nothing has been spent yet."""


class EvaluationError(CmrfedError):
    """The inputs of an evaluation cannot be evaluated."""


class SweepError(CmrfedError):
    """Points of a sweep could not be finished; the others were."""
