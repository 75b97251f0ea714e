"""Opacus' accountants, asked for ε of a history of mechanisms; see `cmrfed.privacy.accountant`."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp as rdp_analysis
from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.accountant import Mechanism

PRV_ERROR = 0.01
"""Accepted error of PRV in ε: the bound that it gives is this much above its estimate, and never below it."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings back: Opacus warns of the RDP order at small noise and of log(0) at q = 1."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@_quiet()
def rdp(history: Sequence[Mechanism], delta: float) -> float:
    """ε at δ of all mechanisms under RDP; infinite where the noise is too small for any order."""
    try:
        total = sum(steps * _curve(sigma, rate) for sigma, rate, steps in history)
    except (OverflowError, ZeroDivisionError):  # σ so small that the orders overflow
        return math.inf
    return max(0.0, _converted(total, delta))


def _converted(curve: np.ndarray | float, delta: float) -> float:
    """ε at δ of a Rényi divergence at every order: the least over orders."""
    value, _ = rdp_analysis.get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=curve, delta=delta)
    return float(value)


@lru_cache(maxsize=1024)
def _curve(sigma: float, rate: float) -> np.ndarray:
    """Rényi divergence of one step at every order."""
    orders = RDPAccountant.DEFAULT_ALPHAS
    return np.asarray(rdp_analysis.compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders))


class _RememberingPRV(PRVAccountant):
    """Opacus' PRV, which takes the Rényi divergences that bound its domain from the cache.

    Opacus computes them three times for each mechanism, which was nearly all of its time. The domain is the same:
    Remark 5.6 of arXiv 2106.02848, as Opacus has it.
    """

    def _get_domain(
        self,
        prvs: list[PoissonSubsampledGaussianPRV],
        num_self_compositions: list[int],
        eps_error: float,
        delta_error: float,
    ) -> Domain:
        counts = sum(num_self_compositions)
        curves = [_curve(prv.noise_multiplier, prv.sample_rate) for prv in prvs]
        total = sum(steps * curve for steps, curve in zip(num_self_compositions, curves, strict=True))
        bounds = [_converted(total, delta_error / 4)]
        bounds += [_converted(curve, delta_error / (8 * counts)) for curve in curves]
        reach = max(*bounds, eps_error) + 3
        return Domain.create_aligned(-reach, reach, eps_error / np.sqrt(counts * np.log(12 / delta_error) / 2))


@_quiet()
def prv(history: Sequence[Mechanism], delta: float) -> float:
    """ε at δ of all mechanisms under PRV.

    Raises:
        PrivacyError: The computation fails.
    """
    accountant = _RememberingPRV()
    accountant.history = list(history)
    try:
        value = float(accountant.get_epsilon(delta, eps_error=PRV_ERROR))
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise PrivacyError(
            "ε could not be computed", got=f"{error} for {history} at δ={delta}", do="use a larger noise or another δ"
        ) from None
    if math.isnan(value):
        raise PrivacyError("ε could not be computed", got=f"not a number for {history} at δ={delta}")
    return max(0.0, value)
