"""One opened bundle: token ids in, scores out."""
