"""The contract of masked attention, and the suite that checks implementations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embed.decorator import parametrize_with_clauses

__all__ = ["parametrize_with_clauses"]


def __getattr__(name: str) -> Any:
    """Import the decorator where it is asked for: the clauses can be read without pytest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .embed.decorator import parametrize_with_clauses

    return parametrize_with_clauses
