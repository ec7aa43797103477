"""The operating points that the report lets one choose from, thinned to what its figures can show."""

import numpy as np

from redimnet_jax.metrics import Roc

MOST = 800  # points of a dimension


def thinned(curve: Roc, most: int = MOST) -> Roc:
    """Return at most `most` + 1 operating points at about even distances along the DET curve, that of the EER too.

    "Reject all", whose threshold is no score, is left out.
    """
    from scipy.special import ndtri

    points = np.arange(1, len(curve.far))
    # Half of the smallest step keeps the ends, where a rate is 0 or 1, at a finite place.
    floor = min(np.diff(rate)[np.diff(rate) > 0].min() for rate in (curve.far, -curve.frr)) / 2
    far, frr = (ndtri(np.clip(rate[points], floor, 1 - floor)) for rate in (curve.far, curve.frr))
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(far), np.diff(frr)))])
    chosen = np.searchsorted(length, np.linspace(0, length[-1], most))
    at_eer = np.flatnonzero(curve.thresholds == curve.eer_threshold()) - 1
    kept = points[np.unique(np.concatenate([chosen, at_eer]))]
    return Roc(curve.thresholds[kept], curve.far[kept], curve.frr[kept])
