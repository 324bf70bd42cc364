"""Pooled rows of labelled text: extracted once with the engine, and kept on disk."""
