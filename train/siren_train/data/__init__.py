"""Labelled text: where it comes from, how it is read and checked, and copies to train on."""
