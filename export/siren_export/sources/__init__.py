"""What an export reads: heads, checkpoints, recipes."""
