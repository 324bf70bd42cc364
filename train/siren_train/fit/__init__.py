"""From pooled rows to a head: probes, selection, search, fit, and the report of it all."""
