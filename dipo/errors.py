"""The exceptions that are the user's to read."""


class UserError(ValueError):
    """What the user gave is wrong: the message is one sentence that says what, where, and what to do.

    The launcher prints it without a traceback and exits with code 2.
    """


class JobError(RuntimeError):
    """The run cannot go on, for a reason outside it: the message is one sentence that says what, and what to do.

    The launcher prints it without a traceback and exits with code 1.
    """
