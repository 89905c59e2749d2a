"""`ErasureError`: the exception for mistakes of the user."""


class ErasureError(Exception):
    """A mistake that the user can correct: what is needed, what was found, and what to do.

    The command line prints its message as one line and exits with code 2; everything else that is
    raised is a defect.
    """
