"""Load on a guard that many share: who asks, how often, and what came of it."""
