"""Choose a precision by measurement."""
