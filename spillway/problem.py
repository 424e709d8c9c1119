"""The one error that the `spillway` command shows to its user: what is wrong, and what to do."""

from __future__ import annotations


class Problem(Exception):
    """Something that the user can mend. Its text is shown as it is, without a traceback."""
