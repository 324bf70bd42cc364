"""Score labelled text with a guard, measure the scores, and choose thresholds by them."""
