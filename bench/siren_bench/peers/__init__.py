"""The peers that our engines are measured against; `registry` makes them by name."""
