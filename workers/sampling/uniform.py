"""Random numbers without a state."""

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments anywhere: a counter-based generator.

    SplitMix64 (Steele et al. 2014) of the position, on a stream that is the seed's own.
    """
    return (_mix(_mix(seed + GOLDEN) + position * GOLDEN) >> 16) / (1 << 48)


def _mix(x: int) -> int:
    x &= MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31
