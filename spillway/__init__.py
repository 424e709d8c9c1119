"""The `spillway` command: local run, simulated providers, operation. Never deployed."""
