"""The siren commands extract, train, evaluate and calibrate."""
