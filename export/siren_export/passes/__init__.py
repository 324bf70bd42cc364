"""Passes over an authored graph: what a precision quantizes, what a target cannot take.

A pass finds what it rewrites by operators, and chooses among linears by their roles, never by
name, so it applies to any authored graph. It replaces entries of `GuardGraph.weights` by weights
that are computed when they are written, so a matrix is in memory only while its bytes are made.
`table` says which passes a precision takes for a target.
"""
