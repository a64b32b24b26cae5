"""What a person sees when their input cannot work, or when a command ends before its time."""


class UserError(ValueError):
    """Bad input: the message is one sentence that says what is wrong and what to do; the command exits with code 2."""


class Ended(Exception):
    """The command ends before its time, with a sentence and this exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def one_line(said: object) -> str:
    """A sentence on one line: names in it may hold anything, also what is no text or would steer a terminal."""
    text = " ".join(str(said).split()).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)
