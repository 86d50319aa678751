"""The errors a user can cause and can mend.

Every message is one line that says what is wrong and what to do. The command line prints it and exits with
status 2, the endpoint answers with it; neither shows a traceback. Anything else that is raised is our own bug.
"""


class P2EsError(Exception):
    """Base of every error that is the input's or the user's, not the program's."""


class InputError(P2EsError):
    """A value, a file or a signal that cannot be used as given."""


class RecordError(InputError):
    """A recording of an archive that cannot be read; `reason` is a short code for the quarantine table."""

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        # Ray sends errors between processes by pickle, which by default would drop the reason.
        return type(self), (str(self), self.reason)


class DatasetError(P2EsError):
    """A dataset that is missing, incomplete, corrupt or of another version."""


class ModelError(P2EsError):
    """A model or a model version that is missing, corrupt or not fit for the request."""


class ConfigError(P2EsError):
    """A setting or a recipe that cannot work."""


class DivergedError(ModelError):
    """A training whose loss or gradients are not finite, or exploded."""


class RemoteError(P2EsError):
    """A service (cluster, registry, endpoint) that does not answer, or refuses."""
