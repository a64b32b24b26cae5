"""What a person sees when their input cannot work."""


class UserError(ValueError):
    """Bad input: the message is one sentence that says what is wrong and what to do; the command exits with code 2."""
