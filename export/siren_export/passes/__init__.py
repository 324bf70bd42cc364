"""What a target cannot take, rewritten over the authored graph: one job a file."""
