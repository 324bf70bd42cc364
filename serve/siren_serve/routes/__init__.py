"""One file an interface; each reads what that interface sends and answers as it does."""
