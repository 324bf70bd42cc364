"""How long a guard takes, and how large it is, from its start to texts of any size."""
