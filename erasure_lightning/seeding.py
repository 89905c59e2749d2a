"""Seeds of the independent draws of a run."""

import hashlib


def derive_seed(*parts: int) -> int:
    """A seed from several numbers; unlike a sum, it differs for different numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
