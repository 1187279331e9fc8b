"""Ties the rooms together: the user's own comparison, and each paper's claim put to the test."""
