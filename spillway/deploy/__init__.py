"""`spillway deploy` and what belongs to it: stacks, package, account, secrets and credentials."""
