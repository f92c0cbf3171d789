"""Errors that a user can do something about: one clear line and an exit status."""


class UserError(Exception):
    """Something the user must change; `str()` of it is the one line shown."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status
