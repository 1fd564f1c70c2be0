"""User errors. Each message says what was asked, what was got and what to do.

The command-line entry points print such an error as one line, without a traceback, and exit with code 2.
"""


class GLRError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(GLRError, ValueError):
    """An option, or a combination of options, that cannot work.

    Attributes:
        option: the option that is refused, with its dotted path where it came from a configuration
            ("estimator.sigma"); None for a combination.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class DataError(GLRError, ValueError):
    """A data set that is missing, damaged or inconsistent."""


class CheckpointError(GLRError, ValueError):
    """A run folder or a checkpoint that cannot be used."""


class DivergenceError(GLRError, ArithmeticError):
    """Training met a NaN or an infinite number."""


def words_of(error: BaseException) -> str:
    """Return the message of an error in one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
