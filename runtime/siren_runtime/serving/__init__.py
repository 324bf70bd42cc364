"""A guard that many callers share: one owner of a queue, who batches what they ask."""
