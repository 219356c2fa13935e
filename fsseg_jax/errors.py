"""The one exception for wrong input: what a user gave, and what to do about it."""


class UserError(ValueError):
    """Wrong input, told in one sentence that names the thing and the remedy.

    Command line programs print the sentence alone and exit with status 2.
    """
