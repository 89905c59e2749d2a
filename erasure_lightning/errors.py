"""The one exception for what a user can mend."""


class ErasureError(Exception):
    """A mistake the user can mend: says who needs what, what was found, and what to do.

    The command line prints its message as one line and exits with code 2; everything else that is
    raised is a defect.
    """
