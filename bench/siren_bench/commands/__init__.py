"""The commands of siren bench, one file each."""
