"""The learning rate as a pure function of how far the run is.

Warmup, stable, decay: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations" (arXiv:2405.18392), section 3.
"""

import math

from bushcraft.train.recipe import ScheduleConfig


def learning_rate(progress: float, schedule: ScheduleConfig, peak: float) -> float:
    """The rate at `progress` = position / sequences of the whole run, in [0, 1]; `peak` is the highest rate.

    It rises linearly from 0, stays at the peak, and falls to `final_fraction` of it.
    """
    assert 0 <= progress <= 1, progress
    if progress < schedule.warmup:
        return peak * (progress / schedule.warmup)
    decay_begins = 1 - schedule.decay
    if progress <= decay_begins:
        return peak
    decayed = min((progress - decay_begins) / schedule.decay, 1.0)
    remaining = 1 - (math.sqrt(decayed) if schedule.decay_shape == "sqrt" else decayed)
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * remaining)
