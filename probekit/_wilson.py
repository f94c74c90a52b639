"""Wilson's interval of a share: `ranking` and `effects` count hits among tries alike."""

from __future__ import annotations

import math

Z = 1.959964  # of 95 %


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of successes / n, with n >= 1; exactly 0 or 1 at the ends."""
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # at the ends the bound is exactly 0 or 1, which rounding would miss
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)
