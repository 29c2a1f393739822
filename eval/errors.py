"""The error of everything that a user can cause."""


class UserError(ValueError):
    """A mistake that a user can mend: one line that says what is wrong, the value, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))  # names and values may hold anything
