"""Thin adapters to other libraries, one file each; import the file you need, for each needs its library."""
