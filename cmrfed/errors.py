"""Errors that a user can act on: what happened, what was got, what was expected, what to do."""


class CmrfedError(Exception):
    """Base of every error that is reported to the user as one paragraph, without a traceback.

    Args:
        what: One sentence: what went wrong.
        got: What was found.
        expected: What would have been accepted.
        do: What the user can do about it.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, do: str | None = None) -> None:
        self.what, self.got, self.expected, self.do = what, got, expected, do
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
    """The inputs of an evaluation cannot be judged."""


class SweepError(CmrfedError):
    """Points of a sweep could not be finished; the others were."""
