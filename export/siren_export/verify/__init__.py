"""Compare a bundle's scores with a reference's."""
