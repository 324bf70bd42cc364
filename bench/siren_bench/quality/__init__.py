"""What a precision does to scores and verdicts on real text."""
