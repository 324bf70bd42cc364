"""What making costs: bundles, plans, and the hidden states that heads are trained on."""
