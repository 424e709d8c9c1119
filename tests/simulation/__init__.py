"""The simulation: the real receiving, processing and sending code on stores in memory, with a
virtual clock, seeded chance and every fault at every call."""
