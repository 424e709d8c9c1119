"""The whole system on one machine: AWS emulator, webhook, a worker for each queue."""
