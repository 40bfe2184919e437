"""From a measured acceptance profile to the probabilities that the solvers work on."""

import numpy as np

from treeopt.optimizer.frontier import Rows
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.errors import OptimizerError

SMOOTHINGS = ("none", "isotonic")


def acceptance_rows(profile: AcceptanceProfile, smoothing: str = "none") -> Rows:
    """[depths, ranks] probabilities: the profile's `by_depth` where it was measured, else one row for all depths.

    They are taken as measured, bumps included, unless smoothing is asked for by name: "isotonic" replaces each row by the
    non-increasing one that is nearest in squares. That is a modelling choice: it says that the bumps are noise. Raises
    OptimizerError for another name.
    """
    if smoothing not in SMOOTHINGS:
        raise OptimizerError(f"smoothing {smoothing!r} is unknown; use one of {', '.join(SMOOTHINGS)}")
    rows = np.array(profile.by_depth or (profile.rank_probability,), dtype=np.float64)
    if smoothing == "none":
        return rows
    from scipy.optimize import isotonic_regression

    smooth = [np.asarray(isotonic_regression(row, increasing=False).x, dtype=np.float64) for row in rows]
    return np.clip(np.stack(smooth), 0.0, 1.0)
