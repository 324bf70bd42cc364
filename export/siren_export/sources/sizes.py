"""The largest size that a config.json or a GGUF header is believed to name."""

# Of positions, channels, tokens, blocks or anything else that is counted. Up to here float32 holds
# every position exactly. Published models read ten million tokens at most, and have fewer of all
# else, so a larger number is damage, and would cost memory before it is found out.
LARGEST_SIZE = 1 << 24
