"""Score labelled text and measure the scores."""
