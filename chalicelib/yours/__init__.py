"""Your own code: what to answer (replies.py) and whom to ask about a message (lookups.py).

Nothing outside this folder needs editing; `git merge upstream` leaves it alone.
"""
