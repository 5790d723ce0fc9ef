"""How the incumbent's time is followed: a discounted mean, and a test that notices when it rises for good."""

from __future__ import annotations

import math

DISCOUNT = 0.05  # weight of a new measurement once there are 20
SHIFT, ALARM = 0.75, 8.0  # a CUSUM in units of the deviation: what it forgives, and where it raises the alarm
LEAST_DEVIATION = 0.05
FIRST = 8  # measurements before a level counts as known to the drift test
OUTLIER = 4.0  # one measurement counts at most so many deviations


class Level:
    """Discounted mean of log seconds over the cost model's, and of the seconds themselves."""

    __slots__ = ("count", "mean", "seconds")

    def __init__(self) -> None:
        self.count, self.mean, self.seconds = 0, 0.0, 0.0

    @property
    def known(self) -> bool:
        """Whether there are enough measurements to go by."""
        return self.count >= 3

    def add(self, value: float, seconds: float) -> None:
        """One measurement; an outlier moves the mean by as much as a tripled time does at most."""
        self.count += 1
        weight = max(DISCOUNT, 1.0 / self.count)
        if self.count > 3:
            value = min(max(value, self.mean - 1.1), self.mean + 1.1)
            seconds = min(seconds, 3.0 * self.seconds)
        self.mean += weight * (value - self.mean)
        self.seconds += weight * (seconds - self.seconds)

    def shift(self, log_ratio: float) -> None:
        """Another configuration took over, faster or slower by this much."""
        self.mean += log_ratio
        self.seconds *= math.exp(log_ratio)

    def restart(self) -> None:
        """Forget the mean of the logarithms; the seconds stay, for the budget."""
        self.count, self.mean = 0, 0.0


class Drift:
    """One-sided CUSUM over standardised residuals (Page 1954): raises the alarm when times rise and stay."""

    __slots__ = ("count", "deviation", "mean", "sum")

    def __init__(self) -> None:
        self.restart(None)

    def restart(self, mean: float | None) -> None:
        """Begin anew, around a known mean or an unknown one."""
        self.count, self.mean, self.sum = (0, 0.0, 0.0) if mean is None else (FIRST, mean, 0.0)
        self.deviation = 2 * LEAST_DEVIATION

    def add(self, value: float) -> bool:
        """One measurement; True when the level has risen."""
        self.count += 1
        if self.count <= FIRST:
            self.mean += (value - self.mean) / self.count
            self.deviation += (abs(value - self.mean) - self.deviation) / (self.count + 1)
            return False
        scale = max(LEAST_DEVIATION, 1.25 * self.deviation)
        z = min(OUTLIER, (value - self.mean) / scale)
        self.sum = max(0.0, self.sum + z - SHIFT)
        if self.sum > ALARM:
            return True
        if z < 2.0:  # a measurement that may belong to a new level does not move the old one
            self.mean += DISCOUNT * (value - self.mean)
            self.deviation += DISCOUNT * (abs(value - self.mean) - self.deviation)
        return False
