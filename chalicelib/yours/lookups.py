"""Your look-ups: which external sources are asked about each message, and what they may answer.

Name each source's address in LOOKUP_URLS; without one it is not asked. A model keeps what it names
and refuses what does not fit; write `extra="forbid"` to be strict.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from chalicelib.lookups import LookUp


class Customer(BaseModel):
    """What the customer system knows of a number."""

    known: bool
    name: str | None = None


class Line(BaseModel):
    """What sort of line a number is."""

    line_type: Literal["mobile", "landline", "voip"]
    country: str


LOOKUPS = (
    LookUp("customer", Customer, timeout=8.0),
    LookUp("line", Line, timeout=8.0, required=True),
)
