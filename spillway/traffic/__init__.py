"""Texts for the local stack, one at a time or thousands, and the count of what became of each."""
