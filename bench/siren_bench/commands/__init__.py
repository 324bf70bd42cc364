"""The commands of siren bench, one file each, and what they share."""
