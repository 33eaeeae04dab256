"""What tests of a HushSum deployment need: parties, a committee in memory, stand-ins for what is slow or elsewhere.

And `lab`, the program behind `he-server lab`; `Lab` is one in a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from he_testing.notebook import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    """`Lab`, once it is asked for: it needs what a whole deployment needs."""
    if name == "Lab":
        from he_testing.notebook import Lab

        return Lab
    raise AttributeError(name)
