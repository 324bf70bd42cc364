"""What is measured on: heads and backbones, trained or of random weights, and texts."""
