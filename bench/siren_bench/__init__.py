"""Measure guards: latency, memory and fidelity against peers."""
