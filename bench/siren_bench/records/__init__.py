"""How a run is kept: samples and their summaries, progress, whole folders, the record on disk."""
