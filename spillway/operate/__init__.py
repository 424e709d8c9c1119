"""What operators ask of a stage, on this machine or deployed: status, trace, doctor, erase."""
