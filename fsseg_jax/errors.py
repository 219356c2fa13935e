"""The exception for wrong input."""


class UserError(ValueError):
    """Wrong input, described by one sentence that names the cause and the remedy.

    Command-line programs print only this sentence and exit with status 2.
    """
