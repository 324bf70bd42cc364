"""From features to a head, with its report."""
