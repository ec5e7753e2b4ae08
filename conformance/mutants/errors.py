"""Mistakes in refusals: other words, another type, or none."""

from .mutant import breaks


@breaks("module_with", "ERR-1")
def refused_in_other_words(right, *call, **options):
    """A wrong call gets the right type of error with a text of its own."""
    try:
        return right(*call, **options)
    except ValueError as error:
        raise ValueError(f"invalid argument: {error}") from error


@breaks("module_with", "ERR-1")
def refused_as_another_type(right, *call, **options):
    """A wrong call gets the right text in another type of error."""
    try:
        return right(*call, **options)
    except ValueError as error:
        raise RuntimeError(str(error)) from error


@breaks("module_with", "ERR-1")
def not_refused(right, *call, **options):
    """A wrong call is not refused, and gives nothing."""
    try:
        return right(*call, **options)
    except ValueError:
        return lambda *inputs, **options: None


@breaks("new", "ERR-1")
def model_refused_in_other_words(right, *call, **settings):
    """A model's wrong setting gets the right type of error with a text of its own."""
    try:
        return right(*call, **settings)
    except ValueError as error:
        raise ValueError(f"invalid argument: {error}") from error
