"""What a stream costs: a token, a chunk, memory, exits, and beside generators."""
