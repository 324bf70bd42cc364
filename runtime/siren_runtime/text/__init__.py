"""Text on its way to tokens: rules, tokenizer, lines of input."""
