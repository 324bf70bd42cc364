"""Features of labelled rows, extracted once and kept on disk."""
