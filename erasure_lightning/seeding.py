"""Seeds of the independent draws of a run."""

import hashlib


def derive_seed(*parts: int) -> int:
    """One seed of several numbers; unlike a sum, neighbours never meet."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
