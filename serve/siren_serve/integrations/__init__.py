"""The guard inside other programs: each file is for one of them, and needs its package."""
